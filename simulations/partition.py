"""Dealing samples out to virtual clients. Every sample goes to exactly one client."""

import math

import numpy as np

from simulations.errors import SimulationError

_ATTEMPTS = 1000


def iid(samples: int, clients: int, *, seed: int) -> list[np.ndarray]:
    """Shuffle and deal evenly: sizes differ by one at most.

    Returns:
        Indices of each client's samples, sorted.

    Raises:
        SimulationError: fewer samples than clients.
    """
    _check(samples, clients, 1)
    order = np.random.default_rng(seed).permutation(samples)
    return [np.sort(part) for part in np.array_split(order, clients)]


def dirichlet(y: np.ndarray, clients: int, *, alpha: float, seed: int, smallest: int = 1) -> list[np.ndarray]:
    """Label skew: each class is shared out by a draw from a Dirichlet (Hsu et al. 2019, arXiv:1909.06335).

    Args:
        y: classes, shape (samples,).
        clients: how many.
        alpha: concentration; small gives each client few classes, large approaches `iid`.
        seed: of the draw.
        smallest: fewest samples of a client; it is drawn again until all have as many.

    Returns:
        Indices of each client's samples, sorted.

    Raises:
        SimulationError: not enough samples, or no draw gave each client `smallest`.
    """
    _check(len(y), clients, smallest)
    if not 0 < alpha < math.inf:
        raise SimulationError(f"alpha = {alpha}: the concentration must be a number above zero")
    random = np.random.default_rng(seed)
    for _ in range(_ATTEMPTS):
        owner = np.empty(len(y), np.int64)
        for label in np.unique(y):
            rows = random.permutation(np.flatnonzero(y == label))
            shares = random.dirichlet(np.full(clients, alpha))
            cuts = (np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
            for client, part in enumerate(np.split(rows, cuts)):
                owner[part] = client
        if np.bincount(owner, minlength=clients).min() >= smallest:
            return [np.flatnonzero(owner == client) for client in range(clients)]
    raise SimulationError(
        f"{len(y)} samples with alpha = {alpha} leave some of {clients} clients with fewer than {smallest}; "
        "take a larger alpha, or fewer clients"
    )


def _check(samples: int, clients: int, smallest: int) -> None:
    if clients < 1:
        raise SimulationError(f"{clients} clients: there must be at least one")
    if samples < clients * smallest:
        raise SimulationError(
            f"{samples} samples are not enough for {clients} clients with at least {smallest} each; take fewer clients"
        )
