"""Contenders of the simulation benchmark that live in this environment: the engine, rounds over it, and a plain loop.

Runs as `python -m benchmarks.simulation_ours engine|rounds|loop WORKLOAD`.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.simulation_workloads import WORKLOADS, Population, Workload, await_turn, take_turns, tell
from contract.tensors import Arrays
from coordinator.rounds.loop import Plan, make_strategy, run_rounds
from coordinator.rounds.runs import RoundResult
from coordinator.rounds.settings import RunConfig
from simulations.cohort.engine import Engine
from simulations.cohort.grid import CohortGrid
from simulations.cohort.learner import of_module
from simulations.cohort.local import Client, Local


def loop(workload: Workload, population: Population) -> Callable[[int], Arrays]:
    """Client after client in one model, with nothing around it."""
    torch.set_num_threads(2 if workload.wide else 1)
    model = population.model
    if workload.wide:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = dict(model.named_parameters())

    def train(number: int) -> Arrays:
        start = {name: value.detach().clone() for name, value in parameters.items()}
        total, examples = {name: torch.zeros_like(value) for name, value in start.items()}, 0
        for client in population.cohort(number):
            with torch.no_grad():
                torch._foreach_copy_(list(parameters.values()), list(start.values()))
            count = population.descend(model, client)
            examples += count
            with torch.no_grad():
                torch._foreach_add_(list(total.values()), list(parameters.values()), alpha=count)
        with torch.no_grad():
            torch._foreach_copy_(list(parameters.values()), list(start.values()))
        return {name: (value / examples).numpy() for name, value in total.items()}

    return train


def engine(workload: Workload, population: Population) -> Callable[[int], Arrays]:
    """The cohort engine alone."""
    learner = of_module(population.model, workload.classes)
    own = Engine(learner, population.x.numpy(), population.y.numpy())

    def train(number: int) -> Arrays:
        clients = [
            Client(str(client), np.arange(*population.rows(client)), 1, workload.rate, None)
            for client in population.cohort(number)
        ]
        return own.train(learner.start, clients, Local(batch=workload.batch)).weights

    return train


def rounds(workload: Workload, population: Population) -> None:
    """What `fieldfare simulate` does in a round of training: Flower's FedAvg, the grid and its checks, the engine."""
    learner = of_module(population.model, workload.classes)
    own = Engine(learner, population.x.numpy(), population.y.numpy())
    config = RunConfig(
        rounds=10_000,  # the benchmark ends it
        epochs=1,
        learning_rate=workload.rate,
        momentum=0.0,
        fraction=workload.cohort / workload.population,
    )
    rows = {f"client-{client:05d}": np.arange(*population.rows(client)) for client in range(workload.population)}
    grid = CohortGrid(rows, own, like=learner.start, seed=0, batch=workload.batch, fold=True)
    strategy = make_strategy(config, cohort=len(rows), smallest=1)
    run_rounds(strategy, grid, _Turns(), Plan(config, len(rows), 1), learner.start)


class _Turns:
    """A `loop.Journal` that keeps the last weights and waits between rounds."""

    def __init__(self) -> None:
        self._last: Arrays = {}
        self._began = 0.0

    def committed(self) -> list[RoundResult]:
        return []

    def put(self, weights: Arrays) -> str:
        self._last = weights
        return ""

    def get(self, sha256: str) -> Arrays:
        return self._last

    def commit(self, result: RoundResult) -> None:
        if result.kind == "train":
            tell(time.perf_counter() - self._began)
        await_turn()
        self._began = time.perf_counter()


def update_error(name: str) -> float:
    """How far the engine's update of one round is from the loop's, relative."""
    workload = WORKLOADS[name]
    population = Population(workload)
    start = {name: value.detach().numpy().copy() for name, value in population.model.named_parameters()}
    found, wanted = (make(workload, Population(workload))(0) for make in (engine, loop))
    away = sum(float(((found[each] - wanted[each]).astype(np.float64) ** 2).sum()) for each in start)
    moved = sum(float(((wanted[each] - start[each]).astype(np.float64) ** 2).sum()) for each in start)
    return float((away / moved) ** 0.5)


if __name__ == "__main__":
    chosen = WORKLOADS[sys.argv[2]]
    if sys.argv[1] == "rounds":
        rounds(chosen, Population(chosen))
    else:
        take_turns({"engine": engine, "loop": loop}[sys.argv[1]](chosen, Population(chosen)))
