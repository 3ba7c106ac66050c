"""A few clients side by side, and what comes of their training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from simulations.cohort.learner import Weights
from simulations.cohort.local import Client, Local, Trained, order


@dataclass(frozen=True)
class Chunk:
    """Clients that train together, those with most steps first; K of them, S steps, batches of B.

    Attributes:
        x: model input, (K, S * B, *input); what does not count is a sample that does.
        y: classes, (K, S * B).
        mask: 1 for what counts, (K, S, B).
        last: 1 for what counts in a client's last epoch, (K, S, B).
        rate: learning rates, (K,).
        local: settings of all.
        examples: samples of each client, (K,).
    """

    clients: Sequence[Client]
    x: Tensor
    y: Tensor
    mask: Tensor
    last: Tensor
    rate: Tensor
    local: Local
    examples: Tensor

    @property
    def steps(self) -> int:
        """Of the client that has most."""
        return int(self.mask.shape[1])

    def active(self) -> list[int]:
        """How many clients, from the first on, take part in each step."""
        return [int(count) for count in (self.mask[:, :, 0] > 0).sum(0)]


@dataclass(frozen=True)
class Result:
    """What a chunk gave.

    Attributes:
        change: sum over clients of examples * (weights - weights at the start), of those that are finite.
        trained: one for each client.
        weights: of each client, (K, *shape), where they were asked for.
    """

    change: Weights
    trained: list[Trained]
    weights: Weights | None


class Path(Protocol):
    """A way to train a chunk. What it gives is what `reference.train` gives for each client alone."""

    name: str

    def train(self, start: Weights, chunk: Chunk, *, keep: bool) -> Result:
        """Train from common weights; `keep` asks for the weights of each client."""


def gather(clients: Sequence[Client], x: Tensor, y: Tensor, local: Local, dtype: torch.dtype) -> Chunk:
    """Lay the samples of some clients out by step."""
    orders = [order(client, local.batch) for client in clients]
    steps = max(len(sizes) for _, sizes in orders)
    rows = np.empty((len(clients), steps, local.batch), np.int64)
    counted = np.zeros((len(clients), steps), np.int64)
    last = np.zeros((len(clients), steps), bool)
    for index, (client, (taken, sizes)) in enumerate(zip(clients, orders, strict=True)):
        rows[index, : len(taken)], rows[index, len(taken) :] = taken, client.rows[0]
        counted[index, : len(sizes)] = sizes
        last[index, len(sizes) - len(sizes) // client.epochs : len(sizes)] = True
    mask = torch.from_numpy(np.arange(local.batch) < counted[:, :, None]).to(dtype)
    flat = torch.from_numpy(rows.reshape(-1))
    shape = (len(clients), steps * local.batch)
    return Chunk(
        clients=clients,
        x=x.index_select(0, flat).to(dtype).reshape(*shape, *x.shape[1:]),
        y=y.index_select(0, flat).reshape(shape),
        mask=mask,
        last=mask * torch.from_numpy(last)[:, :, None],
        rate=torch.tensor([client.learning_rate for client in clients], dtype=dtype),
        local=local,
        examples=torch.tensor([len(client.rows) for client in clients], dtype=dtype),
    )


def finish(start: Weights, chunk: Chunk, losses: Tensor, hits: Tensor, weights: Weights, *, keep: bool) -> Result:
    """Fold the weights of each client, (K, *shape), into one change; who is not finite does not count.

    Args:
        losses, hits: mean loss and share of right answers in the last epoch, (K,).
    """
    good = torch.isfinite(losses)
    change = fold(start, weights, chunk.examples)
    if not finite([losses, *change]):  # then it is worth to look whose
        for each in weights:
            good &= torch.isfinite(each).flatten(1).all(1)
        clean = [torch.where(good.view(-1, *[1] * (each.ndim - 1)), each, 0.0) for each in weights]
        change = fold(start, clean, torch.where(good, chunk.examples, 0.0))
    return Result(change, told(chunk, torch.where(good, losses, torch.nan), hits), weights if keep else None)


def finite(arrays: Weights) -> bool:
    """Whether all are numbers. Now and then it says no of large ones, for it looks at sums, which is quicker."""
    return all(bool(torch.isfinite(each.sum())) for each in arrays)


def fold(start: Weights, weights: Weights, share: Tensor) -> Weights:
    """Sum over clients of share * (weights - start); weights are (K, *shape)."""
    total = float(share.sum())
    return [
        torch.mv(each.flatten(1).t(), share).view_as(base).sub_(base, alpha=total)
        for each, base in zip(weights, start, strict=True)
    ]


def told(chunk: Chunk, losses: Tensor, hits: Tensor) -> list[Trained]:
    """How each client's training went."""
    figures = zip(losses.tolist(), hits.tolist(), chunk.examples.tolist(), strict=True)
    return [Trained(loss, share, int(examples)) for loss, share, examples in figures]
