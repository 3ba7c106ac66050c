"""Flower's Grid over a cohort that trains at once: the strategies of the fleet's rounds run here unchanged."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import numpy as np

from contract.tensors import Arrays
from contract.training import Optimizer
from coordinator.rounds.flower import Message
from coordinator.rounds.grid import GridBase, Reply, Shared, Task
from coordinator.rounds.settings import device_seed
from simulations.cohort.engine import Engine
from simulations.cohort.local import Client, Local, Trained

logger = logging.getLogger(__name__)
DIVERGED = "training diverged, or a sample is not a number; its weights do not count"


class CohortGrid(GridBase):
    """Answers a strategy for all clients of a round together.

    With `fold`, a round comes back as one reply: the average of all, weighed by their examples, with the sum of the
    examples. That is all that a strategy whose aggregation is a weighted sum learns from the replies of each client,
    and memory holds the chunks on their way and not the cohort.
    """

    def __init__(
        self,
        rows: Mapping[str, np.ndarray],
        engine: Engine,
        *,
        like: Arrays,
        seed: int,
        batch: int,
        fold: bool,
        progress: Callable[[str, int], None] = lambda _kind, _done: None,
    ) -> None:
        """Make a grid.

        Args:
            rows: of each client's samples in the engine's population, by name.
            engine: trains and evaluates.
            like: weights of the model.
            seed: of the run; a client's shuffle follows from it, the round and the client's name, as over MQTT.
            batch: samples of a step.
            fold: whether one reply may stand for all.
            progress: told of each chunk that is done, with the number of clients so far.
        """
        sizes = [len(each) for each in rows.values()]
        super().__init__(list(rows), like=like, max_examples=sum(sizes) if fold else max(sizes))
        self._rows, self._engine, self._seed, self._batch, self._fold = rows, engine, seed, batch, fold
        self._progress = progress
        self._replies: dict[str, Reply] = {}
        self._stood_for = 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Train or evaluate the cohort; with `fold`, one reply to the first message stands for all that are good."""
        listed = list(messages)
        if not (self._fold and listed):
            return super().send_and_receive(listed, timeout=timeout)
        shared: Shared = {}
        tasks = [self._task(message, shared) for message in listed]
        told, weights, _ = self._work(tasks, keep=False)
        good = [each for each in told.values() if each.finite]
        for name in (name for name, each in told.items() if not each.finite):
            logger.warning("%s: its reply does not count: %s", name, DIVERGED)
        self.failures |= {name: DIVERGED for name, each in told.items() if not each.finite}
        self._stood_for = len(good)
        examples = sum(each.examples for each in good)
        sums = {name: sum(value * each.examples for each, value in _each(good, name)) for name in ("loss", "accuracy")}
        metrics = {name: total / examples for name, total in sums.items()} if examples else {}
        error = "" if examples else DIVERGED
        return [self._checked(listed[0], Reply(error=error, examples=examples, metrics=metrics, weights=weights))]

    def answered(self, replies: Sequence[Message]) -> int:
        """Clients that the good replies stand for."""
        return self._stood_for if self._fold else super().answered(replies)

    def send(self, tasks: Sequence[Task], timeout_s: float) -> list[str]:
        """Do the work at once."""
        told, _, each = self._work(tasks, keep=True)
        ids = []
        for task in tasks:
            ids.append(f"{task.round}.{task.kind}.{task.device}")
            one = told[task.device]
            metrics = {"loss": one.loss, "accuracy": one.accuracy}
            good = Reply(examples=one.examples, metrics=metrics, weights=each.get(task.device))
            self._replies[ids[-1]] = good if one.finite else Reply(error=DIVERGED)
        return ids

    def receive(self, ids: Sequence[str]) -> dict[str, Reply]:
        """Replies, each handed out once so that memory holds one round."""
        return {name: self._replies.pop(name) for name in ids if name in self._replies}

    def _work(
        self, tasks: Sequence[Task], *, keep: bool
    ) -> tuple[dict[str, Trained], Arrays | None, dict[str, Arrays]]:
        if not tasks:
            return {}, None, {}
        first, clients = tasks[0], [self._client(task) for task in tasks]
        if first.kind != "train":
            return self._engine.evaluate(first.weights, clients), None, {}
        config = first.config
        local = Local(
            batch=self._batch,
            optimizer=cast(Optimizer, config.get("optimizer", "sgd")),
            momentum=float(config.get("momentum", 0.0)),
            weight_decay=float(config.get("weight-decay", 0.0)),
            proximal_mu=float(config.get("proximal-mu", 0.0)),
        )
        done = self._engine.train(
            first.weights, clients, local, keep=keep, on_done=lambda count: self._progress("train", count)
        )
        return done.trained, done.weights, done.each

    def _client(self, task: Task) -> Client:
        return Client(
            name=task.device,
            rows=self._rows[task.device],
            epochs=int(task.config.get("epochs", 1)),
            learning_rate=float(task.config.get("learning-rate", 0.01)),
            seed=device_seed(self._seed, task.round, task.device),
        )


def _each(good: Sequence[Trained], name: str) -> list[tuple[Trained, float]]:
    return [(each, each.loss if name == "loss" else each.accuracy) for each in good]
