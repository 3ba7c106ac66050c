"""Memory of a simulation, and what it costs to have a population on disk: a million clients in a file of zeros.

Runs as `python -m benchmarks.simulation_memory FOLDER COHORT` in a process of its own; its figures are JSON.
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.results import Row
from benchmarks.simulation_workloads import WORKLOADS
from simulations.cohort.engine import Engine
from simulations.cohort.learner import of_module
from simulations.cohort.local import Client, Local

_WORKLOAD = WORKLOADS["W4"]
_CLIENTS = 1_000_000
_SMALL, _LARGE = 100, 50_000
_FLAT = 1.1


def measure(folder: Path, *, quick: bool) -> list[Row]:
    """Rows of the group `memory`."""
    large = 2_000 if quick else _LARGE
    small, most = (_told(folder, cohort) for cohort in (_SMALL, large))
    warm, held = most["warm_us"], most["held_us"]
    return [
        Row("a million clients: built", "s", small["built_s"]),
        Row(f"anonymous memory at its most, a cohort of {_SMALL} of them", "MB", small["anonymous_mb"]),
        Row(f"the same, {large:,}", "MB", most["anonymous_mb"], goal=_FLAT * small["anonymous_mb"]),
        Row(
            f"a client's round, {large:,} of them, on disk and read before; against in memory",
            "us",
            warm,
            held,
            2 * held,
        ),
        Row("the same, never read before", "us", most["cold_us"], held),
    ]


def _told(folder: Path, cohort: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.simulation_memory", str(folder), str(cohort)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _anonymous_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1e3
    raise SystemExit("RssAnon is not in /proc/self/status")


def _file(path: Path, kind: type, shape: tuple[int, ...]) -> np.ndarray:
    """A mapped file of zeros that takes no room until it is read."""
    if path.exists():
        return np.load(path, mmap_mode="r")
    return np.lib.format.open_memmap(path, "w+", kind, shape)


def _trained(x: np.ndarray, y: np.ndarray, ends: np.ndarray, sizes: np.ndarray, drawn: np.ndarray) -> list[float]:
    """Microseconds that a client takes, in each of two rounds."""
    torch.manual_seed(0)
    learner = of_module(_WORKLOAD.model(), _WORKLOAD.classes)
    engine = Engine(learner, x, y)
    clients = [Client(str(c), np.arange(ends[c] - sizes[c], ends[c]), 1, _WORKLOAD.rate, None) for c in drawn]
    spent = []
    for _ in range(2):
        begun = time.perf_counter()
        engine.train(learner.start, clients, Local(batch=_WORKLOAD.batch))
        spent.append((time.perf_counter() - begun) * 1e6 / len(clients))
    return spent


def _main(folder: Path, cohort: int) -> dict[str, float]:
    begun = time.perf_counter()
    sizes = np.random.default_rng(0).integers(*_WORKLOAD.samples, _CLIENTS, np.int32, endpoint=True)
    ends = np.cumsum(sizes, dtype=np.int64)
    x = _file(folder / "x.npy", np.float32, (int(ends[-1]), *_WORKLOAD.shape))
    y = _file(folder / "y.npy", np.int64, (int(ends[-1]),))
    built = time.perf_counter() - begun
    drawn = np.sort(np.random.default_rng(cohort).choice(_CLIENTS, cohort, replace=False, shuffle=False))
    most, ended = [_anonymous_mb()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            most.append(_anonymous_mb())

    watching = threading.Thread(target=watch)
    watching.start()
    cold, warm = _trained(x, y, ends, sizes, drawn)
    ended.set()
    watching.join()
    few = drawn[:1000]
    held = sizes[few]
    rows = int(held.sum())
    _, in_memory = _trained(
        np.zeros((rows, *_WORKLOAD.shape), np.float32),
        np.zeros(rows, np.int64),
        np.cumsum(held),
        held,
        np.arange(len(few)),
    )
    return {
        "built_s": built,
        "anonymous_mb": max(most),
        "cold_us": cold,
        "warm_us": warm,
        "held_us": in_memory,
    }


if __name__ == "__main__":
    print(json.dumps(_main(Path(sys.argv[1]), int(sys.argv[2]))))
