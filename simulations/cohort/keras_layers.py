"""A Keras model in torch's own functions: weights stay in Keras' layout, so that they go to devices as they are.

Keras under its torch backend copies images to channels last inside a layer, which `vmap` cannot follow. Here are the
layers of a chain that simulations know; any other is refused by name.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from contract.tensors import Arrays
from simulations.cohort.layers import Convolution, Dense, Images, Layer, Pooling, Relu
from simulations.cohort.learner import Learner, Weights
from simulations.errors import SimulationError

Step = Callable[[Weights, Tensor, bool], Tensor]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": functional.elu,
    "silu": functional.silu,
}


def learner(model: Any, arrays: Arrays, trained: int, classes: int) -> Learner:
    """The learner of a chain of Keras layers.

    Args:
        model: a built Keras model.
        arrays: its weights.
        trained: how many of them are trained; the others are moments of BatchNormalization.
        classes: its logits.

    Raises:
        SimulationError: a model that is no chain, or a layer that has no torch form here or is frozen.
    """
    if type(model).__name__ != "Sequential":
        raise SimulationError(f"{model.name} is a {type(model).__name__}; simulations train Sequential Keras models")
    names = tuple(arrays)
    steps = [_step(layer, names) for layer in model.layers]

    def logits(given: Weights, x: Tensor, training: bool) -> Tensor:
        for step in steps:
            x = step(given, x, training)
        return x

    images, stack = _by_hand(model.layers, names)
    return Learner(names, trained, arrays, logits, classes, stack, images)


def _step(layer: Any, names: tuple[str, ...]) -> Step:
    kind = type(layer).__name__
    if layer.weights and not layer.trainable:
        raise SimulationError(f"layer {layer.name!r} is frozen; simulations train every weight")
    make = _LAYERS.get(kind)
    if make is None:
        known = ", ".join(sorted(_LAYERS))
        raise SimulationError(f"layer {layer.name!r} ({kind}) cannot be simulated; known are {known}")
    return make(layer, names)


def _index(variable: Any, names: tuple[str, ...]) -> int:
    return names.index(variable.path)


def _activation(layer: Any) -> Callable[[Tensor], Tensor]:
    name = getattr(layer.activation, "__name__", str(layer.activation))
    if name not in _ACTIVATIONS:
        raise SimulationError(f"layer {layer.name!r}: activation {name} cannot be simulated; {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _dense(layer: Any, names: tuple[str, ...]) -> Step:
    kernel, after = _index(layer.kernel, names), _activation(layer)
    bias = _index(layer.bias, names) if layer.use_bias else None

    def step(w: Weights, x: Tensor, _training: bool) -> Tensor:
        x = x @ w[kernel]
        return after(x if bias is None else x + w[bias])

    return step


def _convolution(layer: Any, names: tuple[str, ...]) -> Step:
    if layer.groups != 1 or layer.data_format != "channels_last" or layer.padding not in {"same", "valid"}:
        raise SimulationError(f"layer {layer.name!r}: groups, channels first and causal padding cannot be simulated")
    kernel, after, rank = _index(layer.kernel, names), _activation(layer), len(layer.kernel_size)
    bias = _index(layer.bias, names) if layer.use_bias else None
    convolve = {1: functional.conv1d, 2: functional.conv2d}[rank]
    inside, outside = (0, rank + 1, *range(1, rank + 1)), (0, *range(2, rank + 2), 1)
    spatial = tuple(range(rank))

    def step(w: Weights, x: Tensor, _training: bool) -> Tensor:
        x = x.permute(inside)
        if layer.padding == "same":
            x = functional.pad(x, _same(x.shape[2:], layer.kernel_size, layer.strides, layer.dilation_rate))
        weight = w[kernel].permute(rank + 1, rank, *spatial)
        x = convolve(x, weight, None if bias is None else w[bias], layer.strides, 0, layer.dilation_rate)
        return after(x.permute(outside))

    return step


def _same(sizes: Any, kernel: Any, strides: Any, dilation: Any) -> list[int]:
    """Padding as TensorFlow's `same`, in torch's order: the last axis first, more at the end."""
    found: list[int] = []
    for size, width, stride, apart in zip(sizes, kernel, strides, dilation, strict=True):
        missing = max((math.ceil(size / stride) - 1) * stride + (width - 1) * apart + 1 - size, 0)
        found = [missing // 2, missing - missing // 2, *found]
    return found


def _pooling(layer: Any, _names: tuple[str, ...]) -> Step:
    rank, mean = len(layer.pool_size), "Average" in type(layer).__name__
    if layer.padding != "valid" or layer.data_format != "channels_last":
        raise SimulationError(f"layer {layer.name!r}: only valid padding and channels last can be simulated")
    pools: dict[tuple[int, bool], Callable[..., Tensor]] = {
        (1, False): functional.max_pool1d,
        (2, False): functional.max_pool2d,
        (1, True): functional.avg_pool1d,
        (2, True): functional.avg_pool2d,
    }
    pool, inside, outside = pools[rank, mean], (0, rank + 1, *range(1, rank + 1)), (0, *range(2, rank + 2), 1)
    return lambda _w, x, _training: pool(x.permute(inside), tuple(layer.pool_size), tuple(layer.strides)).permute(
        outside
    )


def _global_pooling(layer: Any, _names: tuple[str, ...]) -> Step:
    if "Average" in type(layer).__name__:
        return lambda _w, x, _training: x.mean(dim=tuple(range(1, x.ndim - 1)))
    return lambda _w, x, _training: x.amax(dim=tuple(range(1, x.ndim - 1)))


def _norm(layer: Any, names: tuple[str, ...]) -> Step:
    if list(layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]) not in (
        [-1],
        [len(layer.gamma.shape)],
    ):
        raise SimulationError(f"layer {layer.name!r}: only normalization over the last axis can be simulated")
    scale, shift = _index(layer.gamma, names), _index(layer.beta, names)

    def step(w: Weights, x: Tensor, _training: bool) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], w[scale], w[shift], layer.epsilon)

    return step


def _batch_norm(layer: Any, names: tuple[str, ...]) -> Step:
    last = layer.axis % layer.input_spec.ndim == layer.input_spec.ndim - 1
    if not (layer.scale and layer.center and last):
        raise SimulationError(f"layer {layer.name!r}: only scale and center over the last axis can be simulated")
    scale, shift = _index(layer.gamma, names), _index(layer.beta, names)
    means, variances = _index(layer.moving_mean, names), _index(layer.moving_variance, names)

    def step(w: Weights, x: Tensor, training: bool) -> Tensor:
        mean, variance = w[means], w[variances]
        if training:
            axes = tuple(range(x.ndim - 1))
            mean, variance = x.mean(axes), x.var(axes, correction=0)
            with torch.no_grad():
                for kept, new in ((w[means], mean), (w[variances], variance)):
                    kept.lerp_(new, 1 - layer.momentum)
        return (x - mean) * torch.rsqrt(variance + layer.epsilon) * w[scale] + w[shift]

    return step


def _applied(function: Callable[[Tensor], Tensor]) -> Step:
    return lambda _w, x, _training: function(x)


_LAYERS: dict[str, Callable[[Any, tuple[str, ...]], Step]] = {
    "InputLayer": lambda _layer, _names: lambda _w, x, _training: x,
    "Dense": _dense,
    "Conv1D": _convolution,
    "Conv2D": _convolution,
    "MaxPooling1D": _pooling,
    "MaxPooling2D": _pooling,
    "AveragePooling1D": _pooling,
    "AveragePooling2D": _pooling,
    "GlobalAveragePooling1D": _global_pooling,
    "GlobalAveragePooling2D": _global_pooling,
    "GlobalMaxPooling1D": _global_pooling,
    "GlobalMaxPooling2D": _global_pooling,
    "LayerNormalization": _norm,
    "Flatten": lambda _layer, _names: lambda _w, x, _training: x.flatten(1),
    "Reshape": lambda layer, _names: lambda _w, x, _training: x.reshape(len(x), *layer.target_shape),
    "ReLU": lambda _layer, _names: lambda _w, x, _training: torch.relu(x),
    "Activation": lambda layer, _names: _applied(_activation(layer)),
    "Dropout": lambda layer, _names: lambda _w, x, training: functional.dropout(x, layer.rate, training),
    "BatchNormalization": _batch_norm,
}


def _by_hand(layers: list[Any], names: tuple[str, ...]) -> tuple[Images | None, tuple[Dense, ...]]:
    """The chain as there are kernels for it; no dense layers where there are none."""
    kinds = [type(layer).__name__ for layer in layers]
    flat = kinds.index("Flatten") if "Flatten" in kinds else 0
    if all(kind == "InputLayer" for kind in kinds[:flat]):
        return None, _stack(layers, names)
    images = _images(layers[:flat], names)
    return images, _stack(layers[flat + 1 :], names) if images else ()


def _images(layers: list[Any], names: tuple[str, ...]) -> Images | None:
    """What comes before the flattening, if it begins with a convolution and goes on with what there are kernels for."""
    rest = [layer for layer in layers if type(layer).__name__ != "InputLayer"]
    shape: tuple[int, ...] = ()
    if type(rest[0]).__name__ == "Reshape":
        shape, rest = tuple(rest[0].target_shape), rest[1:]
    found: list[Layer] = []
    for layer in rest:
        kind = type(layer).__name__
        if kind == "Conv2D" and layer.use_bias and (layer.padding == "valid" or _even(layer)):
            reach = zip(layer.kernel_size, layer.dilation_rate, strict=True)
            padding = [0, 0] if layer.padding == "valid" else [(width - 1) * apart // 2 for width, apart in reach]
            strides, dilation = tuple(layer.strides), tuple(layer.dilation_rate)
            kernel, bias = _index(layer.kernel, names), _index(layer.bias, names)
            found.append(Convolution(kernel, bias, strides, (padding[0], padding[1]), dilation))
        elif kind == "MaxPooling2D":
            found.append(Pooling(tuple(layer.pool_size), tuple(layer.strides), (0, 0)))
        elif kind not in {"ReLU", "Activation"}:
            return None
        if kind in {"ReLU", "Conv2D", "Activation"}:
            after = "relu" if kind == "ReLU" else layer.activation.__name__
            if after not in {"relu", "linear"}:
                return None
            found += [Relu()] if after == "relu" else []
    return Images(tuple(found), shape, channels_last=True) if found and isinstance(found[0], Convolution) else None


def _even(layer: Any) -> bool:
    """Whether `same` pads as much before as after, whatever the size of the image."""
    reach = zip(layer.kernel_size, layer.dilation_rate, strict=True)
    return set(layer.strides) == {1} and all((width - 1) * apart % 2 == 0 for width, apart in reach)


def _stack(layers: list[Any], names: tuple[str, ...]) -> tuple[Dense, ...]:
    """The dense layers, where there is nothing else but flattening before them."""
    rest = [layer for layer in layers if type(layer).__name__ not in {"InputLayer", "Flatten"}]
    if any(type(layer).__name__ != "Dense" or not layer.use_bias for layer in rest):
        return ()
    kinds = [layer.activation.__name__ for layer in rest]
    if not kinds or kinds != ["relu"] * (len(kinds) - 1) + ["linear"]:
        return ()
    return tuple(
        Dense(_index(layer.kernel, names), _index(layer.bias, names), transposed=False, relu=kind == "relu")
        for layer, kind in zip(rest, kinds, strict=True)
    )
