"""What the clients of a cohort do in one round: settings, samples, and in which order they see them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contract.training import Optimizer
from simulations.errors import SimulationError


@dataclass(frozen=True)
class Local:
    """Settings of local training, as in `contract.training`; a client may have epochs and a rate of its own.

    Attributes:
        batch: samples of a step; the last step of an epoch has what is left.
    """

    batch: int = 32
    optimizer: Optimizer = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    proximal_mu: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether a step is nothing but `w -= rate * gradient`."""
        return self.linear and not (self.momentum or self.weight_decay or self.proximal_mu)

    @property
    def linear(self) -> bool:
        """Whether a step is linear in the gradients so far."""
        return self.optimizer == "sgd"


@dataclass(frozen=True, slots=True)
class Client:
    """One client of a cohort.

    Attributes:
        name: as strategies know it.
        rows: of its samples in the population, shape (n,).
        epochs: passes over them.
        learning_rate: of each step.
        seed: of its shuffles, one order for each epoch as on a device; None keeps the stored order.
    """

    name: str
    rows: np.ndarray
    epochs: int
    learning_rate: float
    seed: int | None

    def steps(self, batch: int) -> int:
        """Steps of all epochs."""
        return self.epochs * -(-len(self.rows) // batch)


@dataclass(frozen=True, slots=True)
class Trained:
    """How one client's training went; `loss` and `accuracy` are of its last epoch, as it trained."""

    loss: float
    accuracy: float
    examples: int

    @property
    def finite(self) -> bool:
        """Whether its weights and loss are numbers."""
        return bool(np.isfinite(self.loss))


def check(clients: Sequence[Client]) -> None:
    """Refuse what no path could train on.

    Raises:
        SimulationError: no client, or a client without samples or epochs.
    """
    if not clients:
        raise SimulationError("a cohort without clients")
    for client in clients:
        if not len(client.rows):
            raise SimulationError(f"{client.name} has no samples; leave it out, or give it at least one")
        if client.epochs < 1:
            raise SimulationError(f"{client.name}: {client.epochs} epochs")


def order(client: Client, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Which samples each step takes.

    Returns:
        Rows, shape (steps, batch), and how many of each step count; what does not is a row that does.
    """
    count, each = len(client.rows), -(-len(client.rows) // batch)
    rows = np.empty((client.epochs, each * batch), np.int64)
    random = None if client.seed is None else np.random.default_rng(client.seed)
    for epoch in range(client.epochs):
        rows[epoch, :count] = client.rows if random is None else client.rows[random.permutation(count)]
    rows[:, count:] = client.rows[0]
    sizes = np.full(each, batch)
    sizes[-1] = count - batch * (each - 1)
    return rows.reshape(-1, batch), np.tile(sizes, client.epochs)
