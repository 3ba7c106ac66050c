"""Trained models for the compression benchmarks, kept between runs: `trained` gives a Source without a coordinator.

`python -m benchmarks.compression_models TASK SEED FILE` trains in a process of its own and writes weights; the folder
of what is kept is `build/benchmarks`, a file's name holds a digest of the task's files.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from cloud import features
from cloud.learning.task import UNLABELLED, Data, Task, load_task
from compression.source import Part, Source
from contract import tensors, transform
from coordinator.client import Version

ROOT = Path(__file__).parents[1]
KEPT = Path(os.environ.get("FIELDFARE_BENCHMARK_MODELS", ROOT / "build" / "benchmarks"))


def data_folder() -> Path:
    """Where the real data lie."""
    folder = Path(os.environ.get("FIELDFARE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(f"{folder}: no such folder; FIELDFARE_DATA names the one with the data sets")
    os.environ["FIELDFARE_DATA"] = str(folder)
    return folder


def trained(name: str, seed: int = 0, *, train_samples: int | None = None) -> Source:
    """A task of `examples/`, trained with its own plan and the given seed.

    Args:
        name: folder in `examples`.
        seed: of training.
        train_samples: so many of the training samples for what follows; None is all. The weights saw all of them.
    """
    data_folder()
    task = load_task(str(ROOT / "examples" / name))
    files = [(task.folder / file).read_bytes() for file in ("fieldfare.toml", "task.py")]
    path = KEPT / f"{name}-{seed}-{hashlib.sha256(b''.join(files)).hexdigest()[:12]}.safetensors"
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.compression_models", str(task.folder), str(seed), str(path)]
        subprocess.run(command, check=True, cwd=ROOT)
    data = task.load_data()
    return source(task, tensors.load(path.read_bytes()), data, train_samples=train_samples, seed=seed)


def source(
    task: Task, weights: tensors.Arrays, data: Data, *, train_samples: int | None = None, seed: int = 0
) -> Source:
    """What compression starts from, as if these weights were version 1 of a registry."""
    spec = features.fit(task, data["x"][data["part"] == "train"])
    executor = transform.Transform(spec)
    parts = {}
    for part in ("train", "validation", "test"):
        rows = np.flatnonzero(data["part"] == part)
        if part == "train" and train_samples is not None:
            rows = np.random.default_rng(seed).permutation(rows)[:train_samples]
        parts[part] = Part(data["x"][rows], executor.apply(data["x"][rows]), data["y"][rows], data["device"][rows])
    extra = data["x"][data["part"] == UNLABELLED]
    weights_sha256 = hashlib.sha256(tensors.dump(weights)).hexdigest()
    version = Version(
        model=task.name,
        version=1,
        created_at=0.0,
        task=task.ref,
        weights_sha256=weights_sha256,
        snapshot_sha256="0" * 64,
    )
    return Source(version, task, weights, executor, **parts, unlabelled=executor.apply(extra) if len(extra) else None)


def main() -> None:
    """Train."""
    from cloud.learning.backend import use_tensorflow

    use_tensorflow()
    from cloud.training import fit

    folder, seed, path = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    task = load_task(folder)
    data = task.load_data()
    x = transform.Transform(features.fit(task, data["x"][data["part"] == "train"])).apply(data["x"])

    def told(epoch: int, loss: float) -> None:
        print(f"{task.name}, seed {seed}: epoch {epoch}, loss {loss:.4f}", file=sys.stderr)

    fitted = fit.fit(task, data, x, epochs=task.training.epochs, seed=seed, on_epoch=told)
    print(f"{task.name}, seed {seed}: test accuracy {fitted.metrics['test']['accuracy']:.4f}", file=sys.stderr)
    part = path.with_suffix(".part")
    part.write_bytes(tensors.dump(fitted.weights))
    part.replace(path)


if __name__ == "__main__":
    main()
