"""How much the slopes of each past step count in the weights now.

SGD with momentum, weight decay and FedProx' term is linear in slopes: after some steps a client's weights are

    W_k = a W_0 + sum over steps s of c_s G_s

with numbers `a` and `c_s` that follow from its rate alone. So weights that are not made need only these.
"""

import torch
from torch import Tensor

from simulations.cohort.local import Local


class Factors:
    """Those of K clients: `common` is `a`, (K,); `past` is `c`, (K, S)."""

    def __init__(self, local: Local, rate: Tensor, steps: int) -> None:
        """Begin: the weights are the common ones."""
        self._local, self._rate = local, rate
        self.common, self.past = torch.ones_like(rate), rate.new_zeros(len(rate), steps)
        # The same of the velocity, by which weights move.
        self._common, self._past = torch.zeros_like(rate), torch.zeros_like(self.past)

    def step(self, number: int, clients: int) -> None:
        """Count a step of the first clients: velocity, then weights, see `reference.Moments`."""
        local, rate = self._local, self._rate[:clients]
        common, past = self._common[:clients], self._past[:clients]
        common.mul_(local.momentum).add_(self.common[:clients] - 1, alpha=local.proximal_mu)
        past.mul_(local.momentum).add_(self.past[:clients], alpha=local.proximal_mu)
        past[:, number] += 1
        kept = 1 - local.weight_decay * rate
        self.common[:clients] = kept * self.common[:clients] - rate * common
        self.past[:clients] = kept.unsqueeze(1) * self.past[:clients] - rate.unsqueeze(1) * past

    def by_sample(self, clients: slice, steps: int, batch: int) -> Tensor:
        """`past` of each sample of the first steps, (K, steps * batch)."""
        return self.past[clients, :steps].repeat_interleave(batch, 1)
