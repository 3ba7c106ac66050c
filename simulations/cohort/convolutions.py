"""Kernels for images: convolutions of each client by themselves, then dense layers of all clients together.

A batched convolution with weights for each client is a grouped one, which processors do slower than one call for each
client. So clients go step by step together, each through convolutions of its own with channels last, and meet in the
dense layers, see `stacks`: there the wide layer that follows the flattening is where most weights are, and where a
client has few samples they are never made.
"""

from typing import Any

import torch
from torch import Tensor

from simulations.cohort.chunk import Chunk, Result
from simulations.cohort.layers import Convolution, Dense, Images, Pooling, Relu
from simulations.cohort.learner import Weights
from simulations.cohort.reference import Moments
from simulations.cohort.stacks import Bases, Training

_aten: Any = torch.ops.aten


class Convolutions:
    """Trains chains of convolutions, pooling, ReLU and dense layers."""

    name = "convolutions"

    def __init__(self, images: Images, stack: tuple[Dense, ...]) -> None:
        """Train a learner's `images` and `stack`."""
        self._images, self._bases = images, Bases(stack)

    def train(self, start: Weights, chunk: Chunk, *, keep: bool) -> Result:
        """See `chunk.Path`."""
        with torch.no_grad():
            dense = Training(self._bases.of(start), start, chunk, None)
            return _Training(self._images, dense, start, chunk).run(keep=keep)


class _Training:
    """One chunk on its way. Kernels are (out, in, height, width) here with channels last in memory."""

    def __init__(self, images: Images, dense: Training, start: Weights, chunk: Chunk) -> None:
        self._images, self._dense, self._chunk = images, dense, chunk
        convolutions = [layer for layer in images.layers if isinstance(layer, Convolution)]
        self._places = [index for layer in convolutions for index in (layer.kernel, layer.bias)]
        self._anchor = [self._inside(start[index]) for index in self._places]
        clients = len(chunk.clients)
        self._own = [self._stacked(each, clients) for each in self._anchor]
        self._slopes = [] if chunk.local.plain else [torch.zeros_like(each) for each in self._own]
        self._moments = None if chunk.local.plain else Moments(self._own, chunk.local)

    def _inside(self, array: Tensor) -> Tensor:
        """A kernel of the model as it is here; a bias as it is."""
        return array.permute(3, 2, 0, 1) if array.ndim == 4 and self._images.channels_last else array

    def _outside(self, own: Tensor) -> Tensor:
        """Kernels of all clients as the model has them."""
        return own.permute(0, 3, 4, 2, 1) if own.ndim == 5 and self._images.channels_last else own

    @staticmethod
    def _stacked(array: Tensor, clients: int) -> Tensor:
        """Copies for each client, also where there is one."""
        if array.ndim == 1:
            return array.repeat(clients, 1)
        return array.permute(0, 2, 3, 1).repeat(clients, 1, 1, 1, 1).permute(0, 1, 4, 2, 3)

    def run(self, *, keep: bool) -> Result:
        chunk, batch = self._chunk, self._chunk.local.batch
        counts = chunk.mask.sum(2).int().tolist()
        for step, active in enumerate(chunk.active()):
            taken = slice(step * batch, (step + 1) * batch)
            trails: list[list[Any]] = [[] for _ in range(active)]
            maps = [self._forward(client, taken, counts[client][step], trails[client]) for client in range(active)]
            inputs = self._dense.room(slice(0, active), taken)
            for client, last in enumerate(maps):
                self._mapped(inputs[client, : len(last)], last).copy_(last)
            slopes = self._dense.step(slice(0, active), taken, inputs)
            for client, last in enumerate(maps):
                begun = self._mapped(slopes[client, : len(last)], last).contiguous(memory_format=torch.channels_last)
                self._backward(client, begun, trails[client])
            self._move(active)
        others = {index: self._outside(own) for index, own in zip(self._places, self._own, strict=True)}
        return self._dense.result(keep=keep, others=others)

    def _forward(self, client: int, taken: slice, count: int, trail: list[Any]) -> Tensor:
        """Maps (count, channels, height, width) of a client's batch; `trail` gets what its slopes need."""
        h, own = self._chunk.x[client, taken][:count], iter(self._own)
        h = h.reshape(count, *self._images.shape) if self._images.shape else h
        h = h.permute(0, 3, 1, 2) if self._images.channels_last else h
        h = h.contiguous(memory_format=torch.channels_last)
        for layer in self._images.layers:
            match layer:
                case Convolution():
                    trail.append(h)
                    kernel, bias = next(own)[client], next(own)[client]
                    h = torch.conv2d(h, kernel, bias, layer.stride, layer.padding, layer.dilation)
                case Pooling():
                    before = h
                    h, where = _aten.max_pool2d_with_indices(h, layer.size, layer.stride, layer.padding)
                    trail.append((before, where))
                case Relu():
                    h = h.relu_()
                    trail.append(h)
        return h

    def _mapped(self, flat: Tensor, like: Tensor) -> Tensor:
        """Flattened maps as maps, sharing memory."""
        count, channels, height, width = like.shape
        if self._images.channels_last:
            return flat.view(count, height, width, channels).permute(0, 3, 1, 2)
        return flat.view(count, channels, height, width)

    def _backward(self, client: int, slopes: Tensor, trail: list[Any]) -> None:
        """Slopes of a client's kernels; in plain SGD, where the rate is in them, its step."""
        place = len(self._own)
        for number in reversed(range(len(self._images.layers))):
            layer, kept = self._images.layers[number], trail.pop()
            match layer:
                case Convolution():
                    place -= 2
                    slopes, *found = _aten.convolution_backward(
                        slopes, kept, self._own[place][client], [self._own[place + 1].shape[1]], layer.stride,
                        layer.padding, layer.dilation, False, [0, 0], 1, [number > 0, True, True],
                    )  # fmt: skip
                    for index, each in zip((place, place + 1), found, strict=True):
                        if self._moments is None:
                            self._own[index][client].sub_(each)
                        else:
                            self._slopes[index][client] = each
                case Pooling():
                    before, where = kept
                    slopes = _aten.max_pool2d_with_indices_backward(
                        slopes, before, layer.size, layer.stride, layer.padding, [1, 1], False, where
                    )
                case Relu():
                    slopes = _aten.threshold_backward(slopes, kept, 0)

    def _move(self, active: int) -> None:
        """A step of any other optimiser."""
        if self._moments is None:
            return
        self._moments.narrow(active)
        now, slopes = ([each[:active] for each in part] for part in (self._own, self._slopes))
        self._moments.step(now, slopes, self._anchor, self._chunk.rate[:active])
