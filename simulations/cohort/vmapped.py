"""Local training of any model that `torch.func.vmap` can follow: one call trains a batch of every client at once."""

import torch
from torch import Tensor
from torch.func import grad, vmap

from simulations.cohort.chunk import Chunk, Result, finish
from simulations.cohort.learner import Learner, Weights, loss_and_hits
from simulations.cohort.reference import Moments


class Vmapped:
    """Weights and batches have the clients as their first axis."""

    name = "vmap"

    def __init__(self, learner: Learner) -> None:
        """Train this learner."""
        # An operation without a batched form is taken client by client. How long that takes is measured, see `Engine`.
        torch._C._functorch._set_vmap_fallback_warning_enabled(False)  # noqa: SLF001

        def loss(weights: Weights, x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            mean, hits = loss_and_hits(learner.logits(weights, x, True), y, mask)
            return mean, (mean.detach(), hits)

        # Dropout draws for each client on its own; nothing else draws.
        self._slopes = vmap(grad(loss, has_aux=True), randomness="different")

    def train(self, start: Weights, chunk: Chunk, *, keep: bool) -> Result:
        """See `chunk.Path`."""
        batch, clients = chunk.local.batch, len(chunk.clients)
        weights = [each.repeat(clients, *[1] * each.ndim) for each in start]  # a copy, also for one client
        moments = Moments(weights, chunk.local)
        losses, hits = torch.zeros_like(chunk.rate), torch.zeros_like(chunk.rate)
        for step, active in enumerate(chunk.active()):
            taken = slice(step * batch, (step + 1) * batch)
            now, mask = [each[:active] for each in weights], chunk.mask[:active, step]
            slopes, (mean, right) = self._slopes(now, chunk.x[:active, taken], chunk.y[:active, taken], mask)
            moments.narrow(active)
            moments.step(now, list(slopes), start, chunk.rate[:active])
            counted = chunk.last[:active, step]
            losses[:active] += mean * counted.sum(1)
            hits[:active] += right * counted[:, 0]
        return finish(start, chunk, losses / chunk.examples, hits / chunk.examples, weights, keep=keep)
