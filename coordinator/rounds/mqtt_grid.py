"""Flower's Grid over MQTT: tasks become instructions in the mailbox, replies are what devices put there."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from contract import tensors
from contract.errors import ContractError
from contract.messages import BlobRef, Instruction
from contract.tensors import Arrays
from contract.training import Optimizer
from coordinator.rounds.grid import GridBase, Reply, Task
from coordinator.rounds.mailbox import Letter, Mailbox
from coordinator.rounds.settings import device_seed

_FOREVER_S = 86_400.0  # an instruction must end some day


class MqttGrid(GridBase):
    """Reaches the fleet's agents. They have no Flower: an Instruction tells them all that they need."""

    def __init__(
        self,
        mailbox: Mailbox,
        devices: Sequence[str],
        *,
        run: str,
        bundle_sha256: str,
        seed: int,
        now: Callable[[], float] = time.time,
        **options: Any,
    ) -> None:
        """Make a grid for one run.

        Args:
            mailbox: where the gateway looks.
            devices: names of the cohort.
            run: id of the run.
            bundle_sha256: the bundle whose training signature the devices must use.
            seed: of the devices' shuffles.
            now: seconds since the epoch, the coordinator's clock.
            options: of `GridBase`.
        """
        super().__init__(devices, **options)
        self._mailbox = mailbox
        self._run_name = run
        self._bundle_sha256 = bundle_sha256
        self._seed = seed
        self._now = now

    def send(self, tasks: Sequence[Task], timeout_s: float) -> list[str]:
        """Store the weights once, and queue an instruction for each device."""
        expires_at = self._now() + (timeout_s if math.isfinite(timeout_s) else _FOREVER_S)
        stored: dict[int, BlobRef] = {}
        for task in tasks:
            if id(task.weights) not in stored:
                stored[id(task.weights)] = self._mailbox.put(tensors.dump(task.weights))
        return self._mailbox.send(
            [(task.device, self._instruction(task, stored[id(task.weights)], expires_at)) for task in tasks]
        )

    def _instruction(self, task: Task, weights: BlobRef, expires_at: float) -> Instruction:
        config = task.config
        return Instruction(
            id=f"{self._run_name}.{task.round}.{task.kind}.{task.device}",
            run=self._run_name,
            round=task.round,
            kind="train" if task.kind == "train" else "evaluate",
            bundle_sha256=self._bundle_sha256,
            weights=weights,
            epochs=int(config.get("epochs", 1)),
            learning_rate=float(config.get("learning-rate", 0.01)),
            momentum=float(config.get("momentum", 0.0)),
            proximal_mu=float(config.get("proximal-mu", 0.0)),
            max_samples=int(config.get("max-samples", 100_000)),
            seed=device_seed(self._seed, task.round, task.device),
            expires_at=expires_at,
            optimizer=cast(Optimizer, config.get("optimizer", "sgd")),
            weight_decay=float(config.get("weight-decay", 0.0)),
        )

    def receive(self, ids: Sequence[str]) -> dict[str, Reply]:
        """Replies that devices have put into the mailbox."""
        return {name: self._reply(letter) for name, letter in self._mailbox.collect(ids).items()}

    def _reply(self, letter: Letter) -> Reply:
        weights: Arrays | None = None
        error = letter.error
        if letter.weights is not None and not error:
            try:
                weights = tensors.load(letter.weights)
            except ContractError as broken:
                error = str(broken)
        reply = letter.reply
        return Reply(error, reply.examples, reply.metrics, weights, reply.counts)

    def close(self, ids: Sequence[str]) -> None:
        """Stop waiting for these."""
        self._mailbox.close(ids)
