"""One simulation: labelled samples dealt out to virtual clients, and Flower's strategy over them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from contract.tensors import Arrays
from coordinator.rounds import flower
from coordinator.rounds.grid import GridBase
from coordinator.rounds.loop import Plan, make_strategy, run_rounds
from coordinator.rounds.runs import RoundResult
from coordinator.rounds.settings import RunConfig, check
from simulations.partition import Parts
from simulations.partition import Plan as Partition

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Samples:
    """Raw samples (n, *input_shape) of a transform, classes (n,), and who each is of by nature (n,)."""

    x: np.ndarray
    y: np.ndarray
    groups: np.ndarray = field(default_factory=lambda: np.zeros(0, np.str_))


class Learning(Protocol):
    """What is trained, on which samples, and by which engine.

    Attributes:
        start: weights where round 1 starts.
        labels: classes of the samples that are dealt out to clients, (n,).
        groups: who each of them is of by nature, (n,).
        plan: how it trains, for the record.
    """

    start: Arrays
    labels: np.ndarray
    groups: np.ndarray
    plan: Mapping[str, str | int]

    def grid(self, rows: Mapping[str, np.ndarray], *, seed: int, fold: bool, progress: Progress) -> GridBase:
        """A grid over clients, by name what each has of the samples; `fold`: one reply may stand for all."""

    def measure(self, weights: Arrays) -> dict[str, float]:
        """`loss` and `accuracy` on the central test set, which no client sees."""


@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    Attributes:
        clients: how many, unless the samples say it.
        partition: how samples are dealt out.
        config: as for a run on the fleet.
    """

    clients: int
    partition: Partition
    config: RunConfig


@dataclass(frozen=True)
class RoundScore:
    """Central test scores after a round; round 0 is the base. `clients` answered, `failed` did not."""

    round: int
    clients: int
    accuracy: float
    loss: float
    failed: int = 0


@dataclass(frozen=True)
class Outcome:
    """Scores by round, weights of the last one, and which samples each client had."""

    scores: list[RoundScore]
    weights: Arrays
    parts: Parts


def simulate(
    learning: Learning,
    scenario: Scenario,
    *,
    on_score: Callable[[RoundScore], None] = lambda _score: None,
    on_progress: Progress = lambda _kind, _done: None,
) -> Outcome:
    """Run the rounds.

    Args:
        learning: what is trained.
        scenario: what is simulated.
        on_score: told of each round as it ends.
        on_progress: told of clients as they end, with how many have in the round.

    Raises:
        SimulationError: too few samples, or samples that cannot be trained on.
        CallerError: settings out of range.
    """
    config = check(scenario.config)
    rows = _dealt(learning, scenario)
    strategy = make_strategy(config, cohort=len(rows), smallest=1)
    # Only these are known to learn nothing from replies but their weighted sum; not what derives from them.
    fold = type(strategy) in {flower.FedAvg, flower.FedProx}
    grid = learning.grid(rows, seed=config.seed, fold=fold, progress=on_progress)
    journal = _ScoringJournal(learning.measure, on_score)
    run_rounds(strategy, grid, journal, Plan(config, len(rows), 1), learning.start)
    return Outcome(journal.scores, journal.last, list(rows.values()))


def _dealt(learning: Learning, scenario: Scenario) -> dict[str, np.ndarray]:
    given = learning.labels, learning.groups, scenario.clients
    parts = scenario.partition.deal(*given, seed=scenario.config.seed)
    return {f"client-{number:05d}": rows for number, rows in enumerate(parts)}


class _ScoringJournal:
    """`loop.Journal` in memory, which scores each round's weights on the central test set."""

    def __init__(self, measure: Callable[[Arrays], dict[str, float]], on_score: Callable[[RoundScore], None]) -> None:
        self._measure, self._on_score = measure, on_score
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
        found = self._measure(self.last)
        score = RoundScore(result.round, result.replies, found["accuracy"], found["loss"], len(result.failures))
        self.scores.append(score)
        self._on_score(score)
