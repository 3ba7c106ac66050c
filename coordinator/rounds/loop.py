"""The durable loop around a Flower strategy.

Each round is committed before the next begins. Killed at any moment and started again, the loop goes on after the last
committed round; within a round the same devices are asked again, and the grid finds the replies that have come.
Flower's own `Strategy.start` always begins at round 1.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from contract import tensors
from contract.profile import Counts
from contract.tensors import Arrays
from coordinator.rounds import flower
from coordinator.rounds.errors import QuorumError
from coordinator.rounds.flower import ConfigRecord, Message, Strategy
from coordinator.rounds.grid import GridBase
from coordinator.rounds.runs import RoundResult
from coordinator.rounds.settings import RunConfig, quorum, sample_size

logger = logging.getLogger(__name__)


class Journal(Protocol):
    """Where rounds are committed."""

    def committed(self) -> list[RoundResult]:
        """Rounds that are done, in order."""

    def commit(self, result: RoundResult) -> None:
        """Make a round's result durable; raises RunClosedError where the run was cancelled meanwhile."""

    def put(self, weights: Arrays) -> str:
        """Store weights and return their digest."""

    def get(self, sha256: str) -> Arrays:
        """Weights by digest."""


@dataclass(frozen=True)
class Plan:
    """What does not change during a run.

    Attributes:
        cohort: number of devices.
        smallest: fewest devices that a result may come from.
        sum_counts: adds the devices' profile counts.
    """

    config: RunConfig
    cohort: int
    smallest: int
    sum_counts: Callable[[dict[str, Counts]], Counts] | None = None


def make_strategy(config: RunConfig, *, cohort: int, smallest: int) -> Strategy:
    """Flower's own FedAvg (McMahan et al. 2017, arXiv:1602.05629), or FedProx where `proximal_mu` is above zero."""
    asked = sample_size(config, cohort, smallest=smallest)
    options = {
        "fraction_train": asked / cohort,
        "min_train_nodes": asked,
        "min_evaluate_nodes": cohort,
        "min_available_nodes": cohort,
    }
    if config.proximal_mu > 0:
        return flower.FedProx(proximal_mu=config.proximal_mu, **options)
    return flower.FedAvg(**options)


def run_rounds(
    strategy: Strategy,
    grid: GridBase,
    journal: Journal,
    plan: Plan,
    base: Arrays,
    *,
    report: Callable[[float, str], None] = lambda _fraction, _message: None,
    clock: Callable[[], float] = time.time,
) -> list[RoundResult]:
    """Measure the base, train `plan.config.rounds` rounds, measure the result; what is committed is not done again.

    Raises:
        QuorumError: too few good replies in a round.
        RunClosedError: the run was cancelled.
    """
    done = {(result.round, result.kind): result for result in journal.committed()}
    rounds = plan.config.rounds
    parts = [(0, "evaluate"), *((number, "train") for number in range(1, rounds + 1)), (rounds, "evaluate")]
    weights, sha256 = base, journal.put(base)
    for step, (number, kind) in enumerate(parts):
        result = done.get((number, kind))
        if result is None:
            report(step / len(parts), f"round {number} of {rounds}: {kind}")
            started = clock()
            if kind == "train":
                weights, partial = _train(strategy, grid, plan, number, weights)
                sha256 = journal.put(weights)
            else:
                partial = _evaluate(strategy, grid, plan, number, weights)
            result = RoundResult(
                **{**vars(partial), "weights_sha256": sha256, "started_at": started, "finished_at": clock()}
            )
            journal.commit(result)
            logger.info("round %d %s: %d replies, %s", number, kind, result.replies, result.metrics)
        elif kind == "train":
            sha256 = result.weights_sha256
            weights = journal.get(sha256)
        done[number, kind] = result
    return [done[part] for part in parts]


def _train(strategy: Strategy, grid: GridBase, plan: Plan, number: int, weights: Arrays) -> tuple[Arrays, RoundResult]:
    grid.begin_round()
    flower.seed_sampling(plan.config.seed, number)
    messages = list(
        strategy.configure_train(number, flower.record(weights), _config(plan.config, plan.config.max_samples), grid)
    )
    replies = grid.send_and_receive(messages, timeout=plan.config.round_timeout_s)
    good = _require(grid, plan, number, messages, replies)
    record, metrics = strategy.aggregate_train(number, replies)
    if record is None:
        raise QuorumError(f"round {number}: the strategy refused every reply")
    trained = flower.arrays(record, weights)
    tensors.check_like(trained, weights)
    return trained, RoundResult(number, "train", "", flower.metrics(metrics), good, dict(grid.failures))


def _evaluate(strategy: Strategy, grid: GridBase, plan: Plan, number: int, weights: Arrays) -> RoundResult:
    grid.begin_round()
    flower.seed_sampling(plan.config.seed, number)
    messages = list(
        strategy.configure_evaluate(
            number, flower.record(weights), _config(plan.config, plan.config.evaluate_samples), grid
        )
    )
    replies = grid.send_and_receive(messages, timeout=plan.config.round_timeout_s)
    good = _require(grid, plan, number, messages, replies)
    metrics = flower.metrics(strategy.aggregate_evaluate(number, replies))
    counts = plan.sum_counts(grid.counts) if plan.sum_counts else None
    return RoundResult(number, "evaluate", "", metrics, good, dict(grid.failures), counts)


def _require(grid: GridBase, plan: Plan, number: int, messages: list[Message], replies: list[Message]) -> int:
    good = grid.answered(replies)
    needed = quorum(plan.config, len(messages), smallest=plan.smallest)
    if good < needed:
        reasons = "; ".join(f"{device}: {reason}" for device, reason in sorted(grid.failures.items()))
        raise QuorumError(f"round {number}: {good} good replies of {len(messages)}, needed {needed} ({reasons})")
    return good


def _config(config: RunConfig, max_samples: int) -> ConfigRecord:
    return ConfigRecord(
        {
            "epochs": config.epochs,
            "learning-rate": config.learning_rate,
            "optimizer": config.optimizer,
            "momentum": config.momentum,
            "weight-decay": config.weight_decay,
            "proximal-mu": config.proximal_mu,
            "max-samples": max_samples,
        }
    )
