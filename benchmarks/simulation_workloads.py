"""What is trained in the simulation benchmark, and how its contenders take turns. Needs nothing but numpy and torch.

Samples are noise: only time is measured here. Every contender does one epoch of plain SGD over the stored order of each
client's samples and averages by their number, as published benchmarks of simulators do.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn

_TOLD = "seconds of a round:"


@dataclass(frozen=True)
class Workload:
    """A model and a population.

    Attributes:
        what: in words.
        model: makes it.
        shape: of a sample.
        classes: how many.
        samples: fewest and most of a client.
        batch: samples of a step.
        cohort, population: clients of a round, and of all.
        rate: of learning.
        wide: whether a step is large enough for both cores to share it.
        flower, pfl: how many times faster than Flower's engine and than pfl-research in two processes it must be.
        shrinks: part of the ratio to Flower that remains through `fieldfare simulate`.
    """

    what: str
    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int
    samples: tuple[int, int]
    batch: int
    cohort: int
    population: int
    rate: float
    flower: float
    pfl: float
    wide: bool = False
    shrinks: float = 0.9


def _cnn() -> nn.Module:
    """The CNN of pfl-research's CIFAR-10 benchmark, without its dropout."""
    features = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(12_544, 128), nn.ReLU(), nn.Linear(128, 10))


def _dense(*widths: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return make


WORKLOADS = {
    "W1": Workload(
        "CIFAR-10 CNN, 50 clients", _cnn, (3, 32, 32), 10, (50, 50), 10, 50, 100, 0.1, flower=2, pfl=1.45, wide=True
    ),
    "W2s": Workload("softmax 784-62, 100 clients", _dense(784, 62), (784,), 62, (100, 200), 20, 100, 300, 0.1, 25, 4),
    "W2m": Workload(
        "MLP 784-128-62, 100 clients", _dense(784, 128, 62), (784,), 62, (100, 200), 20, 100, 300, 0.1, 16, 3.5
    ),
    "W3": Workload("MLP 561-128-6, 30 clients", _dense(561, 128, 6), (561,), 6, (300, 300), 30, 30, 30, 0.05, 13, 3.8),
    "W4": Workload(
        "softmax 784-62, 1000 small clients", _dense(784, 62), (784,), 62, (20, 40), 10, 1000, 2000, 0.1, 200, 10,
        shrinks=0.75,
    ),
}  # fmt: skip


class Population:
    """Samples of all clients, one after the other, and a fresh model: the same in every process."""

    def __init__(self, workload: Workload) -> None:
        """Draw them."""
        random = np.random.default_rng(0)
        low, high = workload.samples
        self.ends = np.cumsum(random.integers(low, high + 1, workload.population))
        self.x = torch.from_numpy(random.standard_normal((self.ends[-1], *workload.shape), dtype=np.float32)) * 0.5
        self.y = torch.from_numpy(random.integers(0, workload.classes, self.ends[-1]))
        torch.manual_seed(0)
        self.model = workload.model()
        self._workload = workload

    def rows(self, client: int) -> tuple[int, int]:
        """Where a client's samples begin and end."""
        return (int(self.ends[client - 1]) if client else 0), int(self.ends[client])

    def cohort(self, number: int) -> list[int]:
        """Clients of a round."""
        drawn = np.random.default_rng(1000 + number).choice(len(self.ends), self._workload.cohort, replace=False)
        return [int(client) for client in drawn]

    def descend(self, model: nn.Module, client: int) -> int:
        """Train a model on a client's samples, with nothing around it; returns how many there are."""
        begin, end = self.rows(client)
        parameters = list(model.parameters())
        for at in range(begin, end, self._workload.batch):
            upto = min(at + self._workload.batch, end)
            loss = nn.functional.cross_entropy(model(self.x[at:upto]), self.y[at:upto])
            slopes = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                torch._foreach_add_(parameters, slopes, alpha=-self._workload.rate)  # the quickest that torch has
        return end - begin


def await_turn() -> None:
    """Wait until this contender may train a round; the process ends with its standard input."""
    if not sys.stdin.readline():
        raise SystemExit


def tell(seconds: float) -> None:
    """Say how long a round took."""
    print(_TOLD, seconds, flush=True)


def told(line: str) -> float | None:
    """Seconds, if this line says any: peers print much else."""
    return float(line.removeprefix(_TOLD)) if line.startswith(_TOLD) else None


def take_turns(train: Callable[[int], object]) -> None:
    """A contender: a round for each line on standard input."""
    number = 0
    while True:
        await_turn()
        began = time.perf_counter()
        train(number)
        tell(time.perf_counter() - began)
        number += 1
