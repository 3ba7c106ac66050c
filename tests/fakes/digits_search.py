"""A search on the digits task in a process of its own: `python -m tests.fakes.digits_search FOLDER TRIALS WEIGHTS OUT`.

Says on stdout what begins, and writes to OUT what came of it but for times.
"""

import sys
from pathlib import Path

import msgspec

from cloud import features
from cloud.learning import weights
from cloud.learning.task import load_task
from compression.measure import Judge
from compression.search import budget, study
from compression.search.outcome import Tried
from compression.source import Part, Source
from contract import tensors, transform
from coordinator.client import Version
from tests.fakes import digits_bench

BUDGET = budget.parse("size<=9KiB, drop<=8pt")
SEED = 3


def source(weights_file: Path) -> Source:
    """The digits task as version 1 of a registry, with weights that are trained once and kept in a file."""
    if not weights_file.exists():
        weights_file.write_bytes(tensors.dump(digits_bench.trained().weights))
    task = load_task("fieldfare.digits")
    data = task.load_data()
    executor = transform.Transform(features.fit(task, data["x"][data["part"] == "train"]))
    parts = {}
    for name in ("train", "validation", "test"):
        mine = data["part"] == name
        parts[name] = Part(data["x"][mine], executor.apply(data["x"][mine]), data["y"][mine], data["device"][mine])
    of = {"model": "digits", "version": 1, "created_at": 0.0, "task": task.ref}
    version = Version(**of, weights_sha256="0" * 64, snapshot_sha256="0" * 64)
    return Source(version, task, tensors.load(weights_file.read_bytes()), executor, **parts)


def judge(origin: Source) -> Judge:
    """Measures against the float artifact."""
    from compression import convert

    model = weights.build(origin.task, seed=0)
    weights.put(model, origin.weights)
    return Judge(origin, convert.to_float(model))


def essence(tried: Tried) -> list[object]:
    """What must be the same of a trial however often the search was killed."""
    size = None if tried.report is None else tried.report.zstd_bytes
    made = msgspec.json.encode(tried.recipe).decode()
    return [tried.number, tried.why, made, tried.state, tried.sha256, size]


def say(_fraction: float, phrase: str, _best: str) -> None:
    """A line at once, for a test that waits for it."""
    sys.stdout.write(f"{phrase}\n")
    sys.stdout.flush()


def main() -> None:
    """Search."""
    from cloud.learning.backend import use_tensorflow

    use_tensorflow()
    folder, trials, weights_file, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    origin = source(weights_file)
    found = study.run(
        origin,
        judge(origin),
        BUDGET,
        folder=folder,
        seconds=3600,
        trials=trials,
        seed=SEED,
        on_progress=say,
    )
    told = {"trials": [essence(tried) for tried in found.trials], "front": [each.recipe.name for each in found.front]}
    out.write_bytes(msgspec.json.encode(told))


if __name__ == "__main__":
    main()
