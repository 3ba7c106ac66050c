"""Parts of a bundle beside its model: what is normal (profile), and what the runtime must answer (golden vectors)."""

import numpy as np

from compression.source import Part
from contract import codec, profile, tensors
from contract.transform import Transform
from edge_agent.runtime import Runtime, softmax

GOLDEN_SAMPLES = 16
FLOAT_TOLERANCE = 1e-3  # of a logit; processors add floats in another order
STEP_TOLERANCE = 2.5  # neighbouring integer outputs: kernels round the last bit differently


def reference(transform: Transform, content: bytes, temperature: float, *, edges: Part, seen: Part) -> bytes:
    """The reference profile as JSON: counts of the deployed artifact on samples that it was not trained on.

    Args:
        transform: raw samples to model input and features.
        content: the artifact that devices will run.
        temperature: logits are divided by it.
        edges: samples whose feature quantiles become the bins' edges.
        seen: samples that are counted.
    """
    runtime = Runtime(content)
    columns = transform.features(edges.x).T
    features = [
        profile.FeatureBins(name, profile.quantile_edges(column))
        for name, column in zip(transform.feature_names, columns, strict=True)
    ]
    spec = profile.ProfileSpec(features=features, classes=runtime.classes, confidence_edges=profile.confidence_edges())
    probabilities = softmax(runtime.logits(seen.x), temperature)
    counts = profile.count(profile.check_spec(spec), transform.features(seen.x), probabilities)
    return codec.encode_json(profile.Reference(spec=spec, counts=counts))


def golden(shown: Part, content: bytes, samples: int = GOLDEN_SAMPLES) -> bytes:
    """Raw samples and the logits of the deployed artifact, as safetensors; evenly spaced over the classes.

    Args:
        shown: samples that every device may see; the test samples go to none.
        content: the artifact that devices will run.
        samples: at most so many.
    """
    order = np.argsort(shown.y, kind="stable")
    rows = np.sort(order[np.linspace(0, len(order) - 1, min(samples, len(order))).astype(int)])
    logits = Runtime(content).logits(shown.x[rows])
    return tensors.dump({"x": shown.raw[rows], "logits": logits})


def golden_tolerance(output_step: float) -> float:
    """Largest difference of a logit that the device's self-test allows.

    Args:
        output_step: difference of two neighbouring outputs of an integer artifact, 0 for a float one.
    """
    return STEP_TOLERANCE * output_step if output_step else FLOAT_TOLERANCE
