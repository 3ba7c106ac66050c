"""Dealing samples out to virtual clients. Every sample goes to exactly one client."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from simulations.errors import SimulationError

_ATTEMPTS = 1000
Parts = list[np.ndarray]
"""Indices of each client's samples, sorted."""


@dataclass(frozen=True)
class Plan:
    """How samples are dealt out, from text: `iid`, `dirichlet:0.5`, `shards:2`, `labels:3`, `quantity:0.5`, `natural`.

    Attributes:
        name: of a partitioner.
        number: that it takes; None where it takes none.
    """

    name: str = "iid"
    number: float | None = None

    def deal(self, y: np.ndarray, groups: np.ndarray, clients: int, *, seed: int) -> Parts:
        """Deal samples out.

        Args:
            y: classes, shape (samples,).
            groups: who each sample is of by nature, shape (samples,).
            clients: how many; `natural` has as many as there are groups.
            seed: of every draw.

        Raises:
            SimulationError: see the partitioners.
        """
        if self.name == "natural":
            return natural(groups)
        if self.number is None:
            return iid(len(y), clients, seed=seed)
        return _NUMBERED[self.name](y, clients, self.number, seed)

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name}:{self.number:g}"


def parse(text: str) -> Plan:
    """A plan from text.

    Raises:
        SimulationError: no partitioner of this name, or a number that is missing, too much, or none.
    """
    name, colon, number = text.partition(":")
    if name in {"iid", "natural"} and not colon:
        return Plan(name)
    if name not in _NUMBERED:
        raise SimulationError(f"--partition {text}: take iid, natural, or one of {', '.join(_NUMBERED)} with a number")
    try:
        return Plan(name, float(number))
    except ValueError:
        raise SimulationError(f"--partition {text}: {name} takes a number, as in {name}:2") from None


def iid(samples: int, clients: int, *, seed: int) -> Parts:
    """Shuffle and deal evenly: sizes differ by one at most.

    Returns:
        Indices of each client's samples, sorted.

    Raises:
        SimulationError: fewer samples than clients.
    """
    _check(samples, clients, 1)
    order = np.random.default_rng(seed).permutation(samples)
    return [np.sort(part) for part in np.array_split(order, clients)]


def dirichlet(y: np.ndarray, clients: int, *, alpha: float, seed: int, smallest: int = 1) -> Parts:
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
    _check_alpha(alpha)
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
            return _owned(owner, clients)
    raise SimulationError(
        f"{len(y)} samples with alpha = {alpha} leave some of {clients} clients with fewer than {smallest}; "
        "take a larger alpha, or fewer clients"
    )


def shards(y: np.ndarray, clients: int, *, each: int, seed: int) -> Parts:
    """Sorted by class and cut into equal pieces, so many for each client (McMahan et al. 2017, arXiv:1602.05629, s. 3).

    Args:
        y: classes, shape (samples,).
        clients: how many.
        each: pieces of a client; few give it few classes.
        seed: of who gets which.

    Raises:
        SimulationError: fewer samples than pieces.
    """
    _check(len(y), clients, each)
    random = np.random.default_rng(seed)
    pieces = np.array_split(np.argsort(y, kind="stable"), clients * each)
    order = random.permutation(len(pieces)).reshape(clients, each)
    return [np.sort(np.concatenate([pieces[index] for index in row])) for row in order]


def labels(y: np.ndarray, clients: int, *, each: int, seed: int) -> Parts:
    """So many classes for each client, a class evenly to those who have it (NIID-Bench, arXiv:2102.02079).

    Args:
        y: classes, shape (samples,).
        clients: how many.
        each: classes of a client.
        seed: of who gets which.

    Raises:
        SimulationError: more classes for each than there are, or too few clients or samples to give every class away.
    """
    known = np.unique(y)
    if each > len(known) or clients * each < len(known):
        raise SimulationError(
            f"{clients} clients with {each} classes each, of {len(known)}: take from 1 to {len(known)} classes, and "
            f"at least {math.ceil(len(known) / max(1, each))} clients"
        )
    random = np.random.default_rng(seed)
    # One class in turn, so that each has an owner; the others are drawn.
    turns = np.resize(random.permutation(len(known)), clients * each).reshape(clients, each)
    owners: list[list[int]] = [[] for _ in known]
    for client, row in enumerate(turns):
        taken = list(dict.fromkeys(row.tolist()))
        others = np.setdiff1d(np.arange(len(known)), taken)
        for place in [*taken, *random.permutation(others)[: each - len(taken)].tolist()]:
            owners[place].append(client)
    owner = np.empty(len(y), np.int64)
    for place, label in enumerate(known):
        rows = random.permutation(np.flatnonzero(y == label))
        for client, part in zip(owners[place], np.array_split(rows, len(owners[place])), strict=True):
            owner[part] = client
    return _owned(owner, clients)


def quantity(samples: int, clients: int, *, alpha: float, seed: int) -> Parts:
    """Alike in what they have and not in how much: sizes by a draw from a Dirichlet (NIID-Bench, arXiv:2102.02079).

    Args:
        samples: how many.
        clients: how many; each has one sample at least.
        alpha: concentration; small gives a few clients most.
        seed: of the draws.

    Raises:
        SimulationError: fewer samples than clients, or an alpha that is no concentration.
    """
    _check(samples, clients, 1)
    _check_alpha(alpha)
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.full(clients, alpha))
    ends = np.floor(np.cumsum(shares) * (samples - clients)).astype(np.int64) + np.arange(1, clients + 1)
    ends[-1] = samples
    return [np.sort(part) for part in np.split(random.permutation(samples), ends[:-1])]


def natural(groups: np.ndarray) -> Parts:
    """Each client has what one person, device or place gave, in the order of their names."""
    _, owner = np.unique(groups, return_inverse=True)
    return _owned(owner, int(owner.max()) + 1)


def _owned(owner: np.ndarray, clients: int) -> Parts:
    """Indices by owner; who has nothing is refused."""
    sizes = np.bincount(owner, minlength=clients)
    if not sizes.all():
        raise SimulationError(
            f"{int((sizes == 0).sum())} of {clients} clients would have no sample; take fewer clients"
        )
    return np.split(np.argsort(owner, kind="stable"), np.cumsum(sizes)[:-1])


def _whole(number: float, name: str) -> int:
    if number != int(number) or number < 1:
        raise SimulationError(f"--partition {name}:{number:g}: {name} takes a whole number of one or more")
    return int(number)


_NUMBERED: dict[str, Callable[[np.ndarray, int, float, int], Parts]] = {
    "dirichlet": lambda y, clients, number, seed: dirichlet(y, clients, alpha=number, seed=seed),
    "shards": lambda y, clients, number, seed: shards(y, clients, each=_whole(number, "shards"), seed=seed),
    "labels": lambda y, clients, number, seed: labels(y, clients, each=_whole(number, "labels"), seed=seed),
    "quantity": lambda y, clients, number, seed: quantity(len(y), clients, alpha=number, seed=seed),
}


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < math.inf:
        raise SimulationError(f"alpha = {alpha}: the concentration must be a number above zero")


def _check(samples: int, clients: int, smallest: int) -> None:
    if clients < 1:
        raise SimulationError(f"{clients} clients: there must be at least one")
    if samples < clients * smallest:
        raise SimulationError(
            f"{samples} samples are not enough for {clients} clients with at least {smallest} each; take fewer clients"
        )
