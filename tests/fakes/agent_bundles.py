"""Real bundles around the tiny models, good and bad."""

import hashlib
from typing import Any

import numpy as np

from contract import bundle, profile, tensors, transform
from contract.bundle import Manifest
from contract.messages import BundleRef
from edge_agent.runtime import Runtime, softmax
from tests.fakes import agent_models

TRANSFORM = transform.TransformSpec(
    input_shape=list(agent_models.SHAPE),
    steps=[transform.Scale([0.0], [16.0])],
    features=[transform.Mean("brightness"), transform.Spread("contrast")],
)


def make(*, version: int = 1, variant: str = "float", golden_shift: float = 0.0, **manifest: Any) -> bytes:
    """A bundle that works, unless `golden_shift` moves its golden vectors or `manifest` says otherwise."""
    raw, _ = agent_models.samples(200, seed=1)
    executor = transform.Transform(TRANSFORM)
    x = executor.apply(raw)
    logits = Runtime(agent_models.read(variant)).logits(x)
    features = executor.features(x)
    spec = profile.ProfileSpec(
        features=[
            profile.FeatureBins(name, profile.quantile_edges(column, 5))
            for name, column in zip(executor.feature_names, features.T, strict=True)
        ],
        classes=agent_models.CLASSES,
        confidence_edges=profile.confidence_edges(),
    )
    reference = profile.Reference(spec=spec, counts=profile.count(spec, features, softmax(logits)))
    golden = {"x": raw[:16], "logits": logits[:16] + np.float32(golden_shift)}
    fields = {
        "model": "thirds",
        "version": version,
        "variant": variant,
        "labels": ["low", "middle", "high"],
        "temperature": 1.0,
        "golden_tolerance": 0.2,
        "training": agent_models.SPEC,
        "hardware_classes": [],
        "min_agent_version": "0.1.0",
        "created_at": 1_700_000_000,
        **manifest,
    }
    files = {
        "inference": agent_models.read(variant),
        "transform": TRANSFORM.encode(),
        "profile": bundle.codec.encode_json(reference),
        "golden": tensors.dump(golden),
    }
    if fields["training"] is not None:
        files |= {"training": agent_models.read("training"), "weights": tensors.dump(agent_models.weights())}
    return bundle.pack(Manifest(**fields), files)


def ref(data: bytes) -> BundleRef:
    """The name of a bundle in the registry."""
    manifest = bundle.unpack(data).manifest
    digest = hashlib.sha256(data).hexdigest()
    target = bundle.target_path(manifest.model, manifest.version, manifest.variant, digest)
    return BundleRef(
        model=manifest.model, version=manifest.version, variant=manifest.variant, target=target, sha256=digest
    )
