"""One simulation: a bundle, labelled samples dealt out to virtual clients, and Flower's strategy over them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from contract import tensors
from contract.bundle import Bundle
from contract.tensors import Arrays
from coordinator.rounds.loop import Plan, make_strategy, run_rounds
from coordinator.rounds.runs import RoundResult
from coordinator.rounds.settings import RunConfig, check
from edge_agent.training import TrainingRuntime
from simulations import partition
from simulations.errors import SimulationError
from simulations.virtual_grid import VirtualClient, VirtualGrid, measure


@dataclass(frozen=True)
class Samples:
    """Raw samples (n, *input_shape) of the bundle's transform, and classes (n,)."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    Attributes:
        clients: how many.
        alpha: Dirichlet concentration of labels over clients; None deals evenly.
        config: as for a run on the fleet.
    """

    clients: int
    alpha: float | None
    config: RunConfig


@dataclass(frozen=True)
class RoundScore:
    """Central test scores after a round; round 0 is the base. `clients` answered."""

    round: int
    clients: int
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Outcome:
    """Scores by round, weights of the last one, and samples of each client."""

    scores: list[RoundScore]
    weights: Arrays
    sizes: list[int]


def simulate(
    bundle: Bundle,
    train: Samples,
    test: Samples,
    scenario: Scenario,
    *,
    on_score: Callable[[RoundScore], None] = lambda _score: None,
    on_progress: Callable[[str, int], None] = lambda _kind, _done: None,
) -> Outcome:
    """Run the rounds.

    Args:
        bundle: with a training part; its weights are where round 1 starts.
        train: dealt out to the clients.
        test: central test set; no client sees it.
        scenario: what is simulated.
        on_score: told of each round as it ends.
        on_progress: told of each client as it ends, with its number in the round.

    Raises:
        SimulationError: a bundle that cannot train, or too few samples.
        CallerError: settings out of range.
        ContractError: samples that do not fit the transform.
    """
    config = check(scenario.config)
    if bundle.manifest.training is None:
        raise SimulationError(f"the bundle of {bundle.manifest.model} has no training part; build one that has")
    runtime = TrainingRuntime(bundle.files["training"], bundle.manifest.training)
    base = tensors.load(bundle.files["weights"])
    clients = _clients(bundle, train, scenario)
    grid = VirtualGrid(clients, runtime, like=base, seed=config.seed, progress=on_progress)
    journal = _ScoringJournal(runtime, bundle.transform.apply(test.x), test.y, on_score)
    plan = Plan(config, len(clients), 1)
    run_rounds(make_strategy(config, cohort=len(clients), smallest=1), grid, journal, plan, base)
    return Outcome(journal.scores, journal.last, [len(client.y) for client in clients.values()])


def _clients(bundle: Bundle, train: Samples, scenario: Scenario) -> dict[str, VirtualClient]:
    seed = scenario.config.seed
    if scenario.alpha is None:
        parts = partition.iid(len(train.y), scenario.clients, seed=seed)
    else:
        parts = partition.dirichlet(train.y, scenario.clients, alpha=scenario.alpha, seed=seed)
    x = bundle.transform.apply(train.x)
    return {f"client-{number:05d}": VirtualClient(x[rows], train.y[rows]) for number, rows in enumerate(parts)}


class _ScoringJournal:
    """`loop.Journal` in memory, which scores each round's weights on the central test set."""

    def __init__(
        self, runtime: TrainingRuntime, x: np.ndarray, y: np.ndarray, on_score: Callable[[RoundScore], None]
    ) -> None:
        self._runtime, self._x, self._y, self._on_score = runtime, x, y, on_score
        self.last: Arrays = {}
        self.scores: list[RoundScore] = []

    def committed(self) -> list[RoundResult]:
        return []

    def put(self, weights: Arrays) -> str:
        self.last = weights
        return ""

    def get(self, sha256: str) -> Arrays:
        return self.last

    def commit(self, result: RoundResult) -> None:
        if result.kind == "evaluate" and result.round > 0:
            return  # these weights were scored when they were trained
        found = measure(self._runtime, self.last, self._x, self._y)
        score = RoundScore(result.round, result.replies, found["accuracy"], found["loss"])
        self.scores.append(score)
        self._on_score(score)
