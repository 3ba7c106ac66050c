"""Local training as one reads it: client after client, batch after batch. The faster paths are held to it."""

import torch
from torch import Tensor
from torch.nn import functional

from contract.training import ADAM_BETA2, ADAM_EPSILON
from simulations.cohort.chunk import Chunk, Result, finish
from simulations.cohort.learner import Learner, Weights
from simulations.cohort.local import Local


class Reference:
    """One client after the other, with torch's own gradients."""

    name = "one by one"

    def __init__(self, learner: Learner) -> None:
        """Train this learner."""
        self._learner = learner

    def train(self, start: Weights, chunk: Chunk, *, keep: bool) -> Result:
        """See `chunk.Path`."""
        ended = [self._client(start, chunk, index) for index in range(len(chunk.clients))]
        weights = [torch.stack(each) for each in zip(*(weights for weights, _, _ in ended), strict=True)]
        losses, hits = (torch.stack([each[place] for each in ended]) for place in (1, 2))
        return finish(start, chunk, losses, hits, weights, keep=keep)

    def _client(self, start: Weights, chunk: Chunk, index: int) -> tuple[Weights, Tensor, Tensor]:
        count, batch = self._learner.trained, chunk.local.batch
        kept = [each.clone() for each in start]  # of one client; a model may write to what gradients do not train
        weights, kept = kept[:count], kept[count:]
        moments = Moments(weights, chunk.local)
        loss_sum, hits = torch.zeros((), dtype=weights[0].dtype), torch.zeros((), dtype=weights[0].dtype)
        for step in range(chunk.steps):
            samples = int(chunk.mask[index, step].sum())
            if not samples:  # another client of the chunk has more steps
                break
            x, y = (each[index, step * batch : step * batch + samples] for each in (chunk.x, chunk.y))
            for each in weights:
                each.requires_grad_()
            logits = self._learner.logits([*weights, *kept], x, True)
            loss = functional.cross_entropy(logits, y)
            slopes = list(torch.autograd.grad(loss, weights))
            with torch.no_grad():
                weights = moments.step([each.detach() for each in weights], slopes, start[:count], chunk.rate[index])
                if chunk.last[index, step, 0]:
                    loss_sum += loss.detach() * samples
                    hits += (logits.argmax(-1) == y).sum()
        examples = chunk.examples[index]
        return [*weights, *kept], loss_sum / examples, hits / examples


class Moments:
    """The optimiser of `contract.training`, for one client's weights or for those of many side by side."""

    def __init__(self, weights: Weights, local: Local) -> None:
        """Begin with an optimiser's state at zero."""
        self._local = local
        adam, momentum = local.optimizer == "adam", local.momentum > 0
        self._first = [torch.zeros_like(each) for each in weights] if adam or momentum else []
        self._second = [torch.zeros_like(each) for each in weights] if adam else []
        self._count = 0

    def narrow(self, clients: int) -> None:
        """Go on with the first clients; the others have done their steps."""
        self._first, self._second = ([each[:clients] for each in state] for state in (self._first, self._second))

    def step(self, weights: Weights, slopes: Weights, anchor: Weights, rate: Tensor) -> Weights:
        """New weights; `rate` is one number, or has the clients' axis and as many others as it takes."""
        local = self._local
        if local.proximal_mu:
            slopes = [g + local.proximal_mu * (w - a) for g, w, a in zip(slopes, weights, anchor, strict=True)]
        self._count += 1
        rates = [rate.reshape(-1, *[1] * (each.ndim - 1)) if rate.ndim else rate for each in weights]
        if local.optimizer == "adam":
            moved = self._adam(slopes)
        elif self._first:
            self._first = [local.momentum * m + g for m, g in zip(self._first, slopes, strict=True)]
            moved = self._first
        else:
            moved = slopes
        kept = [1.0 - local.weight_decay * r for r in rates]
        return [k * w - r * d for k, w, r, d in zip(kept, weights, rates, moved, strict=True)]

    def _adam(self, slopes: Weights) -> Weights:
        beta = self._local.momentum
        self._first = [beta * m + (1 - beta) * g for m, g in zip(self._first, slopes, strict=True)]
        self._second = [ADAM_BETA2 * v + (1 - ADAM_BETA2) * g * g for v, g in zip(self._second, slopes, strict=True)]
        scale = (1 - ADAM_BETA2**self._count) ** 0.5 / (1 - beta**self._count)
        return [scale * m / (v.sqrt() + ADAM_EPSILON) for m, v in zip(self._first, self._second, strict=True)]
