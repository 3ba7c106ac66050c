"""Training on the device: time of a step beside torch on one thread, and memory of a whole training process.

The process is the agent's own (`python -m edge_agent.trainer`) on a bundle and samples that are kept as an app's are.
"""

import hashlib
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agent_memory import memory_mb
from benchmarks.results import Row
from contract import bundle, codec, profile, tensors, transform
from contract.messages import BlobRef, Instruction, RoundReply
from contract.training import Optimizer
from edge_agent import trainer, training
from edge_agent.runtime_backend import RuntimeOptions

BATCH, SAMPLES = 32, 512
MLP, SMALL, FASHION = "MLP 561-128-6", "CNN 28x28, 8 and 16 channels", "Fashion-MNIST CNN"
SHAPES: dict[str, tuple[int, ...]] = {MLP: (561,), SMALL: (28, 28, 1), FASHION: (28, 28, 1)}
CLASSES = {MLP: 6, SMALL: 10, FASHION: 10}
MEMORY_MB = {MLP: 60.0, FASHION: 100.0}


def measure(folder: Path, *, quick: bool) -> list[Row]:
    """Steps of ours and torch's, alternating; then memory."""
    rows = []
    for name in SHAPES:
        path = folder / f"training-{list(SHAPES).index(name)}.zip"
        subprocess.run(
            [sys.executable, "-m", "benchmarks.compression_training", name, str(path)], check=True, capture_output=True
        )
        for optimizer in ("sgd", "adam"):
            ours, theirs = _steps(name, path, optimizer, rounds=4 if quick else 16)
            goal = theirs if optimizer == "sgd" else None
            rows.append(Row(f"step of {name}, batch {BATCH}, {optimizer}, one thread", "us", ours, theirs, goal))
        memory = _memory(folder, path, name)
        rows.append(Row(f"  most memory of a whole training process, {name}", "MB", memory, goal=MEMORY_MB.get(name)))
    return rows


def _samples(name: str) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.random((SAMPLES, *SHAPES[name])).astype(np.float32)
    return x, random.integers(0, CLASSES[name], SAMPLES)


def _steps(name: str, path: Path, optimizer: Optimizer, *, rounds: int) -> tuple[float, float]:
    """Microseconds of a step: the median of epochs, ours and torch's in turns."""
    import torch

    torch.set_num_threads(1)
    content = bundle.unpack(path.read_bytes())
    assert content.manifest.training is not None
    runtime = training.TrainingRuntime(content.files["training"], content.manifest.training, RuntimeOptions())
    start, (x, y) = tensors.load(content.files["weights"]), _samples(name)
    model = _torch_model(name)
    channels_first = torch.from_numpy(np.moveaxis(x, -1, 1).copy() if x.ndim == 4 else x)
    labels, loss_of = torch.from_numpy(y), torch.nn.CrossEntropyLoss()
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    steps = sgd if optimizer == "sgd" else torch.optim.Adam(model.parameters())

    def ours() -> None:
        training.train(
            runtime, start, x, y, epochs=1, learning_rate=1e-3, optimizer=optimizer, momentum=0.9, seed=0
        )  # fmt: skip

    def theirs() -> None:
        order = torch.randperm(SAMPLES)
        for begin in range(0, SAMPLES, BATCH):
            rows = order[begin : begin + BATCH]
            steps.zero_grad()
            loss = loss_of(model(channels_first[rows]), labels[rows])
            loss.backward()
            steps.step()
            float(loss.detach())

    times: dict[Any, list[float]] = {ours: [], theirs: []}
    for number in range(rounds + 1):
        for run, seen in times.items():
            begun = time.perf_counter()
            run()
            if number:  # the first warms up
                seen.append((time.perf_counter() - begun) / (SAMPLES // BATCH) * 1e6)
    return float(np.median(times[ours])), float(np.median(times[theirs]))


def _torch_model(name: str) -> Any:
    from torch import nn

    if name == MLP:
        return nn.Sequential(nn.Linear(561, 128), nn.ReLU(), nn.Linear(128, 6))
    first, second = (8, 16) if name == SMALL else (32, 64)
    body = [
        nn.Conv2d(1, first, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
    ]  # fmt: skip
    head = [nn.Linear(784, 10)] if name == SMALL else [nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*body, *head)


def _memory(folder: Path, path: Path, name: str) -> float:
    """Most resident memory, in MB, of the process that the agent starts for an instruction."""
    job_folder = folder / f"job-{path.stem}"
    job_folder.mkdir()
    content, (x, y) = path.read_bytes(), _samples(name)
    weights = bundle.unpack(content).files["weights"]
    (job_folder / "samples.safetensors").write_bytes(tensors.dump({"x": x, "y": y}))
    (job_folder / trainer.WEIGHTS).write_bytes(weights)
    instruction = Instruction(
        id="1", run="1", round=1, kind="train", bundle_sha256=hashlib.sha256(content).hexdigest(),
        weights=BlobRef(hashlib.sha256(weights).hexdigest(), len(weights)), epochs=2, momentum=0.9, expires_at=2e9,
    )  # fmt: skip
    job = trainer.Job(
        instruction=instruction, bundle=str(path), files=[str(job_folder / "samples.safetensors")],
        max_samples=SAMPLES, options=RuntimeOptions(), parent=os.getpid(),
    )  # fmt: skip
    (job_folder / trainer.JOB).write_bytes(codec.encode(job))
    command = [sys.executable, "-P", "-m", "edge_agent.trainer", str(job_folder)]
    peak, child = 0.0, subprocess.Popen(command)
    while child.poll() is None:
        with suppress(OSError, StopIteration):  # it ends while it is looked at
            peak = max(peak, memory_mb(child.pid, "VmHWM"))
        time.sleep(0.002)
    reply = codec.decode((job_folder / trainer.REPLY).read_bytes(), RoundReply)
    assert child.returncode == 0, child.returncode
    assert not reply.error, reply.error
    return peak


def main() -> None:
    """Make the bundle of one model, in a process of its own: torch and tensorflow do not meet."""
    from cloud.learning.backend import use_tensorflow

    use_tensorflow()
    import keras
    import tensorflow as tf

    from cloud.learning import weights
    from compression import training_export

    name, path = sys.argv[1], Path(sys.argv[2])
    layers, (first, second) = keras.layers, (8, 16) if name == SMALL else (32, 64)
    if name == MLP:
        body = [layers.Dense(128, activation="relu"), layers.Dense(6)]
    else:
        body = [
            layers.Conv2D(first, 3, padding="same", activation="relu"), layers.MaxPooling2D(),
            layers.Conv2D(second, 3, padding="same", activation="relu"), layers.MaxPooling2D(), layers.Flatten(),
            *([] if name == SMALL else [layers.Dense(128, activation="relu")]), layers.Dense(10),
        ]  # fmt: skip
    model = keras.Sequential([keras.Input(SHAPES[name]), *body])
    content, spec = training_export.export(model, batch=BATCH)
    rule = transform.TransformSpec(
        input_shape=list(SHAPES[name]), steps=[], features=[transform.Mean("mean"), transform.Spread("spread")]
    )
    x, _ = _samples(name)
    logits = np.asarray(model(x[:16]))
    features = transform.Transform(rule).features(x)
    bins = [
        profile.FeatureBins(each, profile.quantile_edges(column, 5))
        for each, column in zip(("mean", "spread"), features.T, strict=True)
    ]
    counted = profile.ProfileSpec(features=bins, classes=CLASSES[name], confidence_edges=profile.confidence_edges())
    shares = np.full((len(x), CLASSES[name]), 1 / CLASSES[name], np.float32)
    files = {
        "inference": bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert()),
        "transform": rule.encode(),
        "profile": codec.encode_json(profile.Reference(spec=counted, counts=profile.count(counted, features, shares))),
        "golden": tensors.dump({"x": x[:16], "logits": logits}),
        "training": content,
        "weights": tensors.dump(weights.get(model)),
    }
    manifest = bundle.Manifest(
        model="benchmark", version=1, variant="float", labels=[str(each) for each in range(CLASSES[name])],
        temperature=1.0, golden_tolerance=0.1, training=spec, hardware_classes=[], min_agent_version="0.1.0",
        created_at=0,
    )  # fmt: skip
    path.write_bytes(bundle.pack(manifest, files))


if __name__ == "__main__":
    main()
