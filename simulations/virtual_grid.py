"""Flower's Grid over virtual clients: the agent's own training loop, one client after the other, in this process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from contract.tensors import Arrays
from contract.training import Optimizer
from coordinator.rounds.grid import GridBase, Reply, Task
from coordinator.rounds.settings import device_seed
from edge_agent import training
from edge_agent.errors import AgentError
from edge_agent.training import TrainingRuntime


@dataclass(frozen=True)
class VirtualClient:
    """Labelled samples of one client: model input float32 (n, *input_shape), and classes (n,)."""

    x: np.ndarray
    y: np.ndarray


class VirtualGrid(GridBase):
    """Answers the strategies that drive the fleet, by the very loop that an agent runs.

    It is the readable reference for faster engines: same messages, same checks, same seeds as over MQTT.
    """

    def __init__(
        self,
        clients: Mapping[str, VirtualClient],
        runtime: TrainingRuntime,
        *,
        like: Arrays,
        seed: int,
        progress: Callable[[str, int], None] = lambda _kind, _done: None,
        **options: Any,
    ) -> None:
        """Make a grid.

        Args:
            clients: by name.
            runtime: the training model, shared by all: it keeps nothing between calls.
            like: weights of the model.
            seed: of the run; a client's shuffle follows from it, the round and the client's name, as over MQTT.
            progress: told of each client that is done, with its number in the round.
            options: of `GridBase`.
        """
        most = max(len(client.y) for client in clients.values())
        super().__init__(list(clients), like=like, max_examples=most, **options)
        self._clients = dict(clients)
        self._runtime = runtime
        self._seed = seed
        self._progress = progress
        self._replies: dict[str, Reply] = {}

    def send(self, tasks: Sequence[Task], timeout_s: float) -> list[str]:
        """Do the work at once."""
        ids = []
        for number, task in enumerate(tasks, start=1):
            name = f"{task.round}.{task.kind}.{task.device}"
            self._replies[name] = self._work(task)
            self._progress(task.kind, number)
            ids.append(name)
        return ids

    def receive(self, ids: Sequence[str]) -> dict[str, Reply]:
        """Replies, each handed out once so that memory holds one round."""
        return {name: self._replies.pop(name) for name in ids if name in self._replies}

    def _work(self, task: Task) -> Reply:
        client = self._clients[task.device]
        try:
            return self._train(task, client) if task.kind == "train" else self._evaluate(task, client)
        except AgentError as error:
            return Reply(error=str(error))

    def _train(self, task: Task, client: VirtualClient) -> Reply:
        config = task.config
        result = training.train(
            self._runtime,
            task.weights,
            client.x,
            client.y,
            epochs=int(config.get("epochs", 1)),
            learning_rate=float(config.get("learning-rate", 0.01)),
            optimizer=cast(Optimizer, config.get("optimizer", "sgd")),
            momentum=float(config.get("momentum", 0.0)),
            weight_decay=float(config.get("weight-decay", 0.0)),
            proximal_mu=float(config.get("proximal-mu", 0.0)),
            seed=device_seed(self._seed, task.round, task.device),
        )
        metrics = {"loss": result.loss, "accuracy": result.accuracy}
        return Reply(examples=result.examples, metrics=metrics, weights=result.weights)

    def _evaluate(self, task: Task, client: VirtualClient) -> Reply:
        return Reply(examples=len(client.y), metrics=measure(self._runtime, task.weights, client.x, client.y))


def measure(runtime: TrainingRuntime, weights: Arrays, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Mean cross-entropy and accuracy of weights on labelled model input.

    Raises:
        AgentError: weights or samples that do not fit the model.
    """
    logits = training.infer(runtime, weights, x).astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_shares = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return {
        "loss": float(-log_shares[np.arange(len(y)), y].mean()),
        "accuracy": float((logits.argmax(axis=1) == y).mean()),
    }
