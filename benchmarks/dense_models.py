"""Dense models of any size for the agent's benchmarks, made by TensorFlow in a process of its own.

`python -m benchmarks.dense_models FILE SEED FEATURES UNITS...` writes a float `.tflite`: (1, FEATURES) -> last UNITS.
"""

import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from contract import bundle, codec, profile, tensors, transform
from edge_agent.runtime import Runtime, softmax


def make(folder: Path, features: int, units: Sequence[int], *, seed: int) -> bytes:
    """A model's bytes, made once in a folder; its weights are drawn."""
    path = folder / f"dense-{features}-{'-'.join(map(str, units))}-{seed}.tflite"
    if not path.exists():
        command = [
            sys.executable,
            "-m",
            "benchmarks.dense_models",
            str(path),
            str(seed),
            str(features),
            *map(str, units),
        ]
        subprocess.run(command, check=True, capture_output=True)
    return path.read_bytes()


def samples(count: int, features: int, seed: int = 0) -> np.ndarray:
    """Raw float32 samples, shape (count, features)."""
    return np.random.default_rng(seed).normal(size=(count, features)).astype(np.float32)


def pack(model: bytes, features: int, *, version: int = 1) -> bytes:
    """A bundle for inference around a model, with a profile of all its features."""
    spec = transform.TransformSpec(
        input_shape=[features],
        steps=[transform.Scale([0.0], [2.0])],
        features=[transform.Column(f"f{index}", index) for index in range(features)],
    )
    executor = transform.Transform(spec)
    raw = samples(400, features)
    x = executor.apply(raw)
    logits = Runtime(model).logits(x)
    classes = logits.shape[1]
    bins = profile.ProfileSpec(
        features=[
            profile.FeatureBins(name, profile.quantile_edges(column))
            for name, column in zip(executor.feature_names, executor.features(x).T, strict=True)
        ],
        classes=classes,
        confidence_edges=profile.confidence_edges(),
    )
    counts = profile.count(bins, executor.features(x), softmax(logits))
    manifest = bundle.Manifest(
        model="dense",
        version=version,
        variant="float",
        labels=[f"class-{index}" for index in range(classes)],
        temperature=1.0,
        golden_tolerance=0.01,
        training=None,
        hardware_classes=[],
        min_agent_version="0.1.0",
        created_at=1_700_000_000,
    )
    files = {
        "inference": model,
        "transform": spec.encode(),
        "profile": codec.encode_json(profile.Reference(spec=bins, counts=counts)),
        "golden": tensors.dump({"x": raw[:16], "logits": logits[:16]}),
    }
    return bundle.pack(manifest, files)


def main() -> None:
    """The child."""
    import tensorflow as tf

    path, seed, features, *units = Path(sys.argv[1]), *map(int, sys.argv[2:])
    random, sizes = np.random.default_rng(seed), [features, *units]
    layers = [(random.normal(size=pair) / np.sqrt(pair[0])).astype(np.float32) for pair in itertools.pairwise(sizes)]

    @tf.function(input_signature=[tf.TensorSpec((1, features), tf.float32, name="x")])
    def serve(x):  # type: ignore[no-untyped-def]
        for kernel in layers[:-1]:
            x = tf.nn.relu(tf.matmul(x, kernel))
        return {"logits": tf.matmul(x, layers[-1])}

    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], tf.Module())
    path.write_bytes(converter.convert())


if __name__ == "__main__":
    main()
