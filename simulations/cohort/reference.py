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
                weights = [each.detach() for each in weights]
                moments.step(weights, slopes, start[:count], chunk.rate[index])
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

    def step(self, weights: Weights, slopes: Weights, anchor: Weights, rate: Tensor) -> None:
        """Move the weights, in place. `rate` is one number, or one for each client, (K,)."""
        local = self._local
        self._count += 1
        if local.proximal_mu:
            slopes = [g + local.proximal_mu * (w - a) for g, w, a in zip(slopes, weights, anchor, strict=True)]
        for index, (w, slope) in enumerate(zip(weights, slopes, strict=True)):
            rates = rate.view(-1, *[1] * (w.ndim - 1)) if rate.ndim else rate
            if local.weight_decay:
                w.mul_(1.0 - local.weight_decay * rates)
            if local.optimizer == "adam":
                self._adam(index, w, slope, rates)
            elif self._first:
                w.addcmul_(self._first[index].mul_(local.momentum).add_(slope), rates, value=-1)
            else:
                w.addcmul_(slope, rates, value=-1)

    def _adam(self, index: int, w: Tensor, slope: Tensor, rates: Tensor) -> None:
        beta = self._local.momentum
        first = self._first[index].lerp_(slope, 1 - beta)
        second = self._second[index].mul_(ADAM_BETA2).addcmul_(slope, slope, value=1 - ADAM_BETA2)
        scale = (1 - ADAM_BETA2**self._count) ** 0.5 / (1 - beta**self._count)
        w.addcdiv_(first, second.sqrt().add_(ADAM_EPSILON).div_(rates), value=-scale)
