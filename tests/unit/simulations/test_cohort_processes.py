"""Clients that train one by one go to processes of their own where rounds are long."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cloud.learning.task import load_task
from simulations.cohort import engine
from simulations.cohort.engine import Engine, Round
from simulations.cohort.learner import of_task
from simulations.cohort.local import Client, Local

TASK = Path(__file__).parents[3] / "examples" / "torch_digits"  # its BatchNorm is trained one by one
CLIENTS = [Client(f"c{index}", np.arange(index * 9, index * 9 + 9), 1, 0.05, index) for index in range(6)]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(engine, "_LONG_S", 0.0)
    random = np.random.default_rng(0)
    x, y = random.uniform(0, 1, (54, 8, 8, 1)).astype(np.float32), random.integers(0, 10, 54)
    found = Engine(of_task(load_task(str(TASK)), seed=1), x, y, threads=2)
    assert found.plan["path"] == "one by one"
    yield found
    if found._processes is not None:
        found._processes.close()


def trained(which: Engine, *, keep: bool = True) -> Round:
    return which.train(which._learner.start, CLIENTS, Local(batch=4, momentum=0.5), keep=keep)


def begun(which: Engine) -> None:
    deadline = time.monotonic() + 120
    while which._processes is None or not which._processes.ready:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_processes_give_the_bits_that_threads_give(made: Engine) -> None:
    on_threads = trained(made)
    begun(made)
    assert made._processes is not None
    calls = made._processes._pool._queue_count
    in_processes = trained(made)
    assert made._processes._pool._queue_count > calls
    assert on_threads.trained == in_processes.trained
    for name, weights in on_threads.weights.items():
        assert np.array_equal(weights, in_processes.weights[name])
        for client in CLIENTS:
            assert np.array_equal(on_threads.each[client.name][name], in_processes.each[client.name][name])


@pytest.mark.slow
def test_a_process_that_is_killed_costs_no_round(made: Engine, caplog: pytest.LogCaptureFixture) -> None:
    before = trained(made, keep=False)
    begun(made)
    assert made._processes is not None
    for process in list(made._processes._pool._processes.values()):
        os.kill(process.pid or 0, signal.SIGKILL)
    for _ in range(2):
        after = trained(made, keep=False)
        assert all(np.array_equal(before.weights[name], after.weights[name]) for name in before.weights)
    assert "clients go on on threads, for a process that trained them ended" in caplog.text
    assert made._processes is None


def test_short_rounds_start_no_processes(made: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_LONG_S", 60.0)
    trained(made)
    assert made._processes is None
