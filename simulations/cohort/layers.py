"""Chains of layers that have kernels by hand: dense layers, and images by convolutions and pooling before them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

Pair = tuple[int, int]


@dataclass(frozen=True)
class Dense:
    """A dense layer: where its kernel and bias stand among the weights, and what follows it.

    Attributes:
        kernel, bias: indices.
        transposed: whether the kernel is (out, in), as torch keeps it, and not (in, out), as Keras does.
        relu: whether ReLU follows.
    """

    kernel: int
    bias: int
    transposed: bool
    relu: bool


@dataclass(frozen=True)
class Convolution:
    """A convolution in two dimensions: where its kernel and bias stand among the weights, and how it goes."""

    kernel: int
    bias: int
    stride: Pair
    padding: Pair
    dilation: Pair


@dataclass(frozen=True)
class Pooling:
    """The largest of each window."""

    size: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True)
class Relu:
    """What is below zero becomes zero."""


Layer = Convolution | Pooling | Relu


@dataclass(frozen=True)
class Images:
    """What comes before the dense layers; the first is a convolution.

    Attributes:
        shape: that samples are given first; empty leaves them as they are.
        channels_last: whether samples are (height, width, channels), kernels (height, width, in, out) and what is
            flattened as the samples, as Keras does; else (channels, height, width) and (out, in, height, width).
    """

    layers: tuple[Layer, ...]
    shape: tuple[int, ...]
    channels_last: bool


def of_sequential(module: nn.Module, names: Sequence[str]) -> tuple[Images | None, tuple[Dense, ...]]:
    """A torch Sequential as images and dense layers; no dense layers where it is anything else."""
    layers = list(module.named_children()) if isinstance(module, nn.Sequential) else []
    flat = [place for place, (_, layer) in enumerate(layers) if isinstance(layer, nn.Flatten) and layer.start_dim == 1]
    if not flat or flat[0] == 0:
        return None, _stack(layers[1:] if flat else layers, names)
    images = _images(layers[: flat[0]], names)
    return images, _stack(layers[flat[0] + 1 :], names) if images else ()


def _stack(layers: Sequence[tuple[str, nn.Module]], names: Sequence[str]) -> tuple[Dense, ...]:
    found: list[Dense] = []
    for name, layer in layers:
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            found.append(Dense(names.index(f"{name}.weight"), names.index(f"{name}.bias"), transposed=True, relu=False))
        elif isinstance(layer, nn.ReLU) and found and not found[-1].relu:
            last = found.pop()
            found.append(Dense(last.kernel, last.bias, last.transposed, relu=True))
        else:
            return ()
    return tuple(found) if all(each.relu for each in found[:-1]) and found and not found[-1].relu else ()


def _images(layers: Sequence[tuple[str, nn.Module]], names: Sequence[str]) -> Images | None:
    shape: tuple[int, ...] = ()
    if isinstance(layers[0][1], nn.Unflatten) and layers[0][1].dim == 1:
        shape, layers = tuple(layers[0][1].unflattened_size), layers[1:]
    found = [_image_layer(f"{name}.", layer, names) for name, layer in layers]
    known = tuple(each for each in found if each is not None)
    if len(known) < len(found) or not known or not isinstance(known[0], Convolution):
        return None
    return Images(known, shape, channels_last=False)


def _image_layer(prefix: str, layer: nn.Module, names: Sequence[str]) -> Layer | None:
    if isinstance(layer, nn.ReLU):
        return Relu()
    if isinstance(layer, nn.MaxPool2d) and not (layer.ceil_mode or layer.return_indices) and layer.dilation == 1:
        return Pooling(_pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding))
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.bias is not None:
        padding = (0, 0) if layer.padding == "valid" else layer.padding
        if layer.padding_mode == "zeros" and padding != "same":
            kernel, bias = names.index(f"{prefix}weight"), names.index(f"{prefix}bias")
            return Convolution(kernel, bias, _pair(layer.stride), _pair(padding), _pair(layer.dilation))
    return None


def _pair(given: int | Sequence[int]) -> Pair:
    return (given, given) if isinstance(given, int) else (int(given[0]), int(given[1]))
