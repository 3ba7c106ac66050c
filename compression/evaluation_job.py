"""Job kind `evaluate`: a bundle on labelled samples, by the transform and the runtime that devices use."""

from typing import Any

import msgspec
import numpy as np

from cloud.learning import metrics
from compression.errors import RecipeError
from contract import bundle, profile, tensors
from coordinator.client import JobContext
from edge_agent.runtime import Runtime, softmax


class EvaluateSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to evaluate.

    Attributes:
        bundle_sha256: a registered bundle.
        samples_sha256: blob of safetensors with `x` raw, shape (n, *input_shape), and `y` (n,) integer classes.
    """

    bundle_sha256: str
    samples_sha256: str


def run(context: JobContext) -> dict[str, Any]:
    """Evaluate; the answer is `{"accuracy", "estimated_accuracy", "samples"}`.

    The estimate is the mean calibrated confidence: it needs no labels, and holds under covariate shift alone.

    Raises:
        RecipeError: a specification or samples that make no sense.
        ContractError: a bundle that cannot be read, or samples that its transform refuses.
    """
    try:
        spec = msgspec.convert(context.spec, EvaluateSpec)
    except msgspec.ValidationError as error:
        raise RecipeError(f"specification of an evaluate job: {error}") from error
    context.report(0.1, "fetching the bundle")
    content = bundle.unpack(context.client.get_blob(spec.bundle_sha256))
    samples = tensors.load(context.client.get_blob(spec.samples_sha256))
    if set(samples) != {"x", "y"} or len(samples["x"]) != len(samples["y"]) or not len(samples["y"]):
        raise RecipeError("samples to evaluate need tensors `x` and `y` of one length, and at least one sample")
    context.report(0.4, f"running {len(samples['y'])} samples")
    return evaluate(content, samples["x"], samples["y"])


def evaluate(content: bundle.Bundle, raw: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Accuracy of a bundle on raw samples, and what it says of itself."""
    x = content.transform.apply(raw)
    logits = Runtime(content.files["inference"]).logits(x)
    probabilities = softmax(logits, content.manifest.temperature)
    counts = profile.count(content.profile.spec, content.transform.features(x), probabilities)
    return {
        "accuracy": metrics.accuracy(logits, y),
        "estimated_accuracy": profile.estimated_accuracy(counts),
        "samples": len(y),
    }
