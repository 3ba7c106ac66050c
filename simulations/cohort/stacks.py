"""Kernels for stacks of dense layers: forward and backward by hand, batched over clients, with SGD inside a product.

A layer's weights of K clients are one array, and `W -= rate * H^T dZ` is one batched product that never makes the
gradient. Where a client sees fewer samples than the layer is wide, its weights are not even made. After some steps

    W_k = W_0 - H^T dZ            H: its inputs so far, dZ: their slopes times the rate

so that an output is a product with the common W_0 less a small correction, `H_t W_0 - (H_t H^T) dZ`, and the sum over
all clients is one product, too. This is exact for SGD, also with momentum, decay or FedProx' term, see `factors`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from simulations.cohort.chunk import Chunk, Result, finish, finite, fold, told
from simulations.cohort.factors import Factors
from simulations.cohort.layers import Dense
from simulations.cohort.learner import Learner, Weights
from simulations.cohort.reference import Moments

_WIDE = 16  # floats that processors take at once: rows that end elsewhere take up to half as long again
_NEVER = -1e30  # a logit; far from what overflows
_IMPLICIT = 0.5  # of the narrower side of a layer: for so many samples a client's weights are not worth making


class Stacks:
    """Trains models that are nothing but dense layers and ReLU."""

    name = "dense kernels"

    def __init__(self, learner: Learner) -> None:
        """Train this learner, which has a `stack`."""
        self._bases = Bases(learner.stack)

    def train(self, start: Weights, chunk: Chunk, *, keep: bool) -> Result:
        """See `chunk.Path`."""
        with torch.no_grad():
            x, batch = chunk.x.flatten(2), chunk.local.batch
            training = Training(self._bases.of(start), start, chunk, x)
            for step, active in enumerate(chunk.active()):
                who, taken = slice(0, active), slice(step * batch, (step + 1) * batch)
                training.step(who, taken, x[who, taken])
            return training.result(keep=keep)


@dataclass(frozen=True)
class Base:
    """What all clients begin with.

    Attributes:
        layers: from the first to the one that gives logits.
        kernels: (in, out) here, whatever the model keeps, and as wide as products are quick with: columns that the
            model does not have are zero, and so are the rows of the next layer that they meet.
        biases: (out,); a logit that the model does not have is as good as never.
    """

    layers: tuple[Dense, ...]
    kernels: Weights
    biases: Weights


class Bases:
    """Lays weights out once for all chunks of a round."""

    def __init__(self, layers: tuple[Dense, ...]) -> None:
        """Of these layers."""
        self._layers = layers
        self._last: tuple[Weights, Base] | None = None

    def of(self, start: Weights) -> Base:
        """Of these weights, which nobody changes."""
        last = self._last
        if last is None or last[0] is not start:
            last = self._last = start, self._laid(start)
        return last[1]

    def _laid(self, start: Weights) -> Base:
        kernels: Weights = []
        biases: Weights = []
        for layer in self._layers:
            kernel = start[layer.kernel].t() if layer.transposed else start[layer.kernel]
            beside = -kernel.shape[1] % _WIDE if kernel.shape[1] > _WIDE else 0
            below = kernels[-1].shape[1] - len(kernel) if kernels else 0
            kernels.append(pad(kernel, (0, beside, 0, below)).contiguous())
            biases.append(pad(start[layer.bias], (0, beside), value=0.0 if layer is not self._layers[-1] else _NEVER))
        return Base(self._layers, kernels, biases)


class Training:
    """One chunk on its way."""

    def __init__(self, base: Base, start: Weights, chunk: Chunk, x: Tensor | None) -> None:
        """Begin.

        Args:
            base: the layers and what they begin with.
            start: weights of the whole model.
            chunk: its classes, masks and rates.
            x: inputs of all steps, (K, S * B, width); None where only the steps before give them.
        """
        self._layers, self._kernels, self._biases = base.layers, base.kernels, base.biases
        self._start, self._chunk = start, chunk
        clients, samples = chunk.y.shape
        self._y, self._known = chunk.y.unsqueeze(2), x is not None
        plain = chunk.local.plain
        self._implicit = [chunk.local.linear and samples <= _IMPLICIT * min(kernel.shape) for kernel in self._kernels]
        # A client's own kernels; or, where they are not made, its inputs and slopes so far.
        self._own = [kernel.repeat(0 if implicit else clients, 1, 1) for implicit, kernel in self._paired()]
        self._bias = [bias.repeat(clients, 1, 1) for bias in self._biases]
        self._inputs = [
            x if index == 0 and x is not None else kernel.new_zeros(clients if implicit else 0, samples, len(kernel))
            for index, (implicit, kernel) in enumerate(self._paired())
        ]
        self._slopes = [
            kernel.new_zeros(clients if implicit else 0, samples, kernel.shape[1])
            for implicit, kernel in self._paired()
        ]
        scale = chunk.mask / chunk.mask.sum(2, keepdim=True).clamp(min=1)
        self._scale = (scale * chunk.rate.view(-1, 1, 1) if plain else scale).view(clients, samples, 1)
        self._moments = None if plain else Moments(self._explicit(self._own, self._bias), chunk.local)
        by_factors = any(self._implicit) and not plain
        self._factors = Factors(chunk.local, chunk.rate, chunk.steps) if by_factors else None
        self._losses, self._hits = torch.zeros_like(self._scale), torch.zeros_like(self._scale)
        self._common = [
            (x.reshape(-1, len(kernel)) @ kernel).view(clients, samples, -1)
            if implicit and index == 0 and x is not None
            else None
            for index, (implicit, kernel) in enumerate(self._paired())
        ]

    def _paired(self) -> list[tuple[bool, Tensor]]:
        return list(zip(self._implicit, self._kernels, strict=True))

    def room(self, who: slice, taken: slice) -> Tensor:
        """Where the inputs of a step are written before it, (K, B, width), zero so far."""
        if self._implicit[0]:
            return self._inputs[0][who, taken]
        return self._kernels[0].new_zeros(who.stop, taken.stop - taken.start, len(self._kernels[0]))

    def step(self, who: slice, taken: slice, x: Tensor) -> Tensor:
        """Train on inputs (K, B, width) of some clients; gives their slopes where not all inputs were known before."""
        inputs = [x]
        for index, layer in enumerate(self._layers):
            z = self._forward(index, inputs[-1], who, taken)
            inputs.append(z.relu_() if layer.relu else z)
        y, logs = self._y[who, taken], torch.log_softmax(inputs[-1], 2)
        self._losses[who, taken] = logs.gather(2, y).neg_()
        self._hits[who, taken] = (inputs[-1].argmax(2, keepdim=True) == y).to(logs.dtype)
        slopes = logs.exp_()
        slopes.scatter_add_(2, y, slopes.new_full((1, 1, 1), -1.0).expand_as(y))
        slopes *= self._scale[who, taken]
        gradients: Weights = []
        for index in reversed(range(len(self._layers))):
            before = None
            if index or not self._known:
                before = self._backward(index, slopes, who, taken)
            if index and before is not None:
                before.mul_(inputs[index] > 0)
            gradients[:0] = self._learn(index, inputs[index], slopes, who, taken)
            slopes = slopes if before is None else before
        if self._moments is not None:
            self._move(self._moments, gradients, who, taken.start // self._chunk.local.batch)
        return slopes

    def result(self, *, keep: bool, others: Mapping[int, Tensor] | None = None) -> Result:
        """What came of it; `others` are weights of each client by index that were trained elsewhere."""
        chunk, shape, others = self._chunk, self._chunk.mask.shape, others or {}
        losses, hits = (
            (each.view(shape) * chunk.last).sum((1, 2)) / chunk.examples for each in (self._losses, self._hits)
        )
        if keep:
            return finish(self._start, chunk, losses, hits, self._weights(others), keep=keep)
        return self._folded(losses, hits, others)

    def _forward(self, index: int, h: Tensor, who: slice, taken: slice) -> Tensor:
        """Outputs of a layer before ReLU."""
        bias = self._bias[index][who]
        if not self._implicit[index]:
            return torch.baddbmm(bias, h, self._own[index][who])
        common = self._common[index]
        product = h.reshape(-1, h.shape[2]) @ self._kernels[index] if common is None else common[who, taken]
        product = product.reshape(*h.shape[:2], -1)
        z = product + bias if self._factors is None else torch.addcmul(bias, product, self._kept(self._factors, who))
        if index:
            self._inputs[index][who, taken] = h
        past = slice(0, taken.start)
        return self._corrected(z, h, (self._inputs[index][who, past], self._slopes[index][who, past]), who)

    def _backward(self, index: int, slopes: Tensor, who: slice, taken: slice) -> Tensor:
        """Slopes of a layer's inputs."""
        if not self._implicit[index]:
            return torch.bmm(slopes, self._own[index][who].mT)
        before = (slopes.reshape(-1, slopes.shape[2]) @ self._kernels[index].t()).view(*slopes.shape[:2], -1)
        if self._factors is not None:
            before *= self._kept(self._factors, who)
        past = slice(0, taken.start)
        return self._corrected(before, slopes, (self._slopes[index][who, past], self._inputs[index][who, past]), who)

    @staticmethod
    def _kept(factors: Factors, who: slice) -> Tensor:
        return factors.common[who].view(-1, 1, 1)

    def _corrected(self, z: Tensor, now: Tensor, past: tuple[Tensor, Tensor], who: slice) -> Tensor:
        """Add to a product with the common weights what the steps so far have changed."""
        seen, gives = past
        if not seen.shape[1]:
            return z
        alike, batch = torch.bmm(now, seen.mT), self._chunk.local.batch
        if self._factors is None:
            return z.baddbmm_(alike, gives, alpha=-1)
        alike *= self._factors.by_sample(who, seen.shape[1] // batch, batch).unsqueeze(1)
        return z.baddbmm_(alike, gives)

    def _learn(self, index: int, h: Tensor, slopes: Tensor, who: slice, taken: slice) -> Weights:
        """A step of plain SGD, where the rate is in the slopes; gradients where another optimiser takes it."""
        plain, implicit = self._moments is None, self._implicit[index]
        if implicit:
            self._slopes[index][who, taken] = slopes
        if not plain:
            return [*([] if implicit else [torch.bmm(h.mT, slopes)]), slopes.sum(1, keepdim=True)]
        self._bias[index][who].sub_(slopes.sum(1, keepdim=True))
        if not implicit:
            self._own[index][who].baddbmm_(h.mT, slopes, alpha=-1)
        return []

    def _move(self, moments: Moments, gradients: Weights, who: slice, number: int) -> None:
        moments.narrow(who.stop)
        now = self._explicit([own[who] for own in self._own], [bias[who] for bias in self._bias])
        anchor = self._explicit(self._kernels, self._biases)
        moments.step(now, gradients, anchor, self._chunk.rate[who])
        if self._factors is not None:
            self._factors.step(number, who.stop)

    def _explicit(self, kernels: Weights, biases: Weights) -> Weights:
        """Kernels that are made, each with its bias; of the others the bias alone."""
        found: Weights = []
        for kernel, bias, implicit in zip(kernels, biases, self._implicit, strict=True):
            found += [bias] if implicit else [kernel, bias]
        return found

    def _weighed(self, index: int) -> Tensor:
        """Slopes of a layer as they count in each client's weights, (K, S * B, out)."""
        if self._factors is None:
            return -self._slopes[index]
        chunk = self._chunk
        return self._slopes[index] * self._factors.by_sample(slice(None), chunk.steps, chunk.local.batch).unsqueeze(2)

    def _weights(self, others: Mapping[int, Tensor]) -> Weights:
        """Of each client, in the model's order and layout."""
        found = [others.get(index, base) for index, base in enumerate(self._start)]
        for index, layer in enumerate(self._layers):
            own = self._own[index]
            if self._implicit[index]:
                base = self._kernels[index]
                base = base if self._factors is None else base * self._kept(self._factors, slice(None))
                own = base + torch.bmm(self._inputs[index].mT, self._weighed(index))
            found[layer.kernel], found[layer.bias] = self._cut(layer, own, self._bias[index].squeeze(1))
        return found

    def _cut(self, layer: Dense, kernel: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """A kernel and bias, of many or one, as the model has them."""
        kernel = kernel.mT if layer.transposed else kernel
        rows, columns = self._start[layer.kernel].shape
        return kernel[..., :rows, :columns], bias[..., : len(self._start[layer.bias])]

    def _folded(self, losses: Tensor, hits: Tensor, others: Mapping[int, Tensor]) -> Result:
        """The change of all without anybody's weights; where something is not finite, the long way says whose it is."""
        chunk, change, share = self._chunk, list(self._start), self._chunk.examples
        for index, layer in enumerate(self._layers):
            if self._implicit[index]:
                weighed, inputs = self._weighed(index) * share.view(-1, 1, 1), self._inputs[index]
                kernel = inputs.reshape(-1, inputs.shape[2]).t() @ weighed.view(-1, weighed.shape[2])
                if self._factors is not None:
                    kernel.add_(self._kernels[index], alpha=float(share @ (self._factors.common - 1)))
            else:
                own = self._own[index]
                kernel = torch.mv(own.flatten(1).t(), share).view(own.shape[1:])
                kernel.sub_(self._kernels[index], alpha=float(share.sum()))
            bias = share @ (self._bias[index].squeeze(1) - self._biases[index])
            change[layer.kernel], change[layer.bias] = self._cut(layer, kernel, bias)
        for index, own in others.items():
            (change[index],) = fold([self._start[index]], [own], share)
        if finite([losses, *change]):
            return Result(change, told(chunk, losses, hits), None)
        return finish(self._start, chunk, losses, hits, self._weights(others), keep=False)
