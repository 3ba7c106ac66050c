"""Which filters and units of a model belong together, and the model without some of them.

Every filter of a convolution and every unit of a dense layer has a number. The numbers are followed through the graph,
so that each axis of each weight knows which of them it holds: of its producer, of BatchNorm vectors, of depthwise
kernels, of a dense layer behind Flatten. What Add joins is tied: it stays or goes together. Number 0 is what nobody
may cut: the model's input, and the logits that are tied to it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from compression import tuning
from compression.errors import UnsupportedLayerError

FIXED = 0
_MAKERS = {"Conv1D": "filters", "Conv2D": "filters", "Dense": "units"}
_SEPARABLE = ("SeparableConv1D", "SeparableConv2D")
_DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D")
_SAME_SHAPE = (
    *("Activation", "ReLU", "LeakyReLU", "ELU", "Softmax", "ThresholdedReLU"),
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "ActivityRegularization"),
)
_OVER_POSITIONS = (
    *("MaxPooling1D", "MaxPooling2D", "AveragePooling1D", "AveragePooling2D"),
    *("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalAveragePooling1D", "GlobalAveragePooling2D"),
    *("ZeroPadding1D", "ZeroPadding2D", "Cropping1D", "Cropping2D", "UpSampling1D", "UpSampling2D"),
)
_JOINED = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")


def makers(model: Any) -> set[str]:
    """Names of the layers that make filters or units, of a Keras model of either kind."""
    return {layer.name for layer in model.layers if type(layer).__name__ in (*_MAKERS, *_SEPARABLE)}


Axes = dict[int, np.ndarray]
"""Axis of a weight to the numbers that lie along it."""


class Channels:
    """The numbers of one model.

    Attributes:
        model: tf_keras, functional or sequential.
        made: layer that makes filters or units to their numbers, in the order of its kernel's last axis.
        axes: layer to the numbers along its weights' axes, in the order of `get_weights`.
    """

    def __init__(self, model: Any) -> None:
        """Follow them.

        Args:
            model: tf_keras, functional or sequential, of fixed input shape; it is not changed.

        Raises:
            UnsupportedLayerError: a layer through which they cannot be followed; the message names it.
        """
        self.model = model
        self.made: dict[str, np.ndarray] = {}
        self.axes: dict[str, list[Axes]] = {}
        self._shaped: dict[str, np.ndarray] = {}
        self._parents = [FIXED]
        seen = tuning.copy(model)  # its layers are in this one graph only
        tensors = {id(tensor): np.zeros(_shape(tensor, "input"), np.int64) for tensor in seen.inputs}
        for layer in seen.layers:
            if type(layer).__name__ == "InputLayer":
                continue
            if len(layer.inbound_nodes) != 1:
                raise UnsupportedLayerError(f"{layer.name}: is used {len(layer.inbound_nodes)} times; use it once each")
            given = layer.input if isinstance(layer.input, list) else [layer.input]
            tensors[id(layer.output)] = self._through(layer, [tensors[id(tensor)] for tensor in given])
        for tensor in seen.outputs:
            for number in np.unique(tensors[id(tensor)]):
                self._tie(int(number), FIXED)

    def roots(self, numbers: np.ndarray) -> np.ndarray:
        """The number that stands for all that are tied to each of `numbers`; `FIXED` for those that must stay."""
        return np.array([self._root(int(number)) for number in numbers.ravel()], np.int64).reshape(numbers.shape)

    def groups(self) -> list[list[str]]:
        """Layers whose filters are tied to each other, as lists; alone where there is no such tie."""
        groups: list[tuple[set[int], list[str]]] = []
        for name, numbers in self.made.items():
            roots, names = set(self.roots(numbers).tolist()) - {FIXED}, [name]
            for group in [group for group in groups if group[0] & roots]:
                groups.remove(group)
                roots, names = roots | group[0], [*group[1], *names]
            groups.append((roots, names))
        return [names for _, names in groups]

    def without(self, cut: Sequence[int], *, keep_weights: bool = True) -> Any:
        """The model without filters and units, and without all that reads them.

        Args:
            cut: roots; each takes all that is tied to it along.
            keep_weights: False leaves the new layers as their initializers made them.

        Returns:
            A new tf_keras model with layers of the same names.

        Raises:
            UnsupportedLayerError: a layer that would be left without a filter, or a Reshape whose output would have
                gaps.
        """
        import tf_keras

        kept = ~np.isin(self.roots(np.arange(len(self._parents))), [root for root in cut if root != FIXED])

        def smaller(layer: Any) -> Any:
            config = layer.get_config()
            if layer.name in self.made:
                left = int(kept[self.made[layer.name]].sum())
                if left == 0:
                    raise UnsupportedLayerError(f"{layer.name}: no filter would be left; keep more")
                config["filters" if "filters" in config else "units"] = left
            if layer.name in self._shaped:
                config["target_shape"] = _without_gaps(layer.name, kept[self._shaped[layer.name]])
            return type(layer).from_config(config)

        made = tf_keras.models.clone_model(self.model, clone_function=smaller)
        if keep_weights:
            for layer in self.model.layers:
                arrays = [_taken(array, axes, kept) for array, axes in zip(*self._weights(layer), strict=True)]
                made.get_layer(layer.name).set_weights(arrays)
        return made

    def _weights(self, layer: Any) -> tuple[list[np.ndarray], list[Axes]]:
        arrays = layer.get_weights()
        return arrays, self.axes.get(layer.name, [{}] * len(arrays))

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number

    def _tie(self, one: int, other: int) -> None:
        low, high = sorted((self._root(one), self._root(other)))
        self._parents[high] = low  # so that FIXED, the lowest, stands for all that are tied to it

    def _new(self, layer: Any, count: int) -> np.ndarray:
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        self.made[layer.name] = np.arange(first, first + count)
        return self.made[layer.name]

    def _last_axis(self, numbers: np.ndarray) -> np.ndarray:
        """What a kernel reads at every position alike: numbers that take turns at one place of the axis are tied."""
        rows = numbers.reshape(-1, numbers.shape[-1])
        for row in np.unique(rows, axis=0)[1:]:
            for one, other in zip(rows[0], row, strict=True):
                self._tie(int(one), int(other))
        return np.asarray(rows[0])

    def _join(self, given: list[np.ndarray]) -> np.ndarray:
        arrays = np.broadcast_arrays(*given)
        for other in arrays[1:]:
            for one, two in np.unique(np.stack([arrays[0].ravel(), other.ravel()]), axis=1).T:
                self._tie(int(one), int(two))
        return np.asarray(arrays[0])

    def _through(self, layer: Any, given: list[np.ndarray]) -> np.ndarray:
        """Numbers of a layer's output, shaped like one sample of it."""
        kind, shape, (numbers, *_) = type(layer).__name__, _shape(layer.output, layer.name), given
        config = layer.get_config()
        if config.get("data_format") == "channels_first" or config.get("groups", 1) != 1:
            raise UnsupportedLayerError(f"{layer.name}: channels_first and groups of channels cannot be shrunk")
        follow: Callable[..., np.ndarray] | None = None
        if kind in _MAKERS or kind in _SEPARABLE or kind in _DEPTHWISE:
            follow = self._kernel
        elif kind == "BatchNormalization" and list(config["axis"]) == [len(shape)]:
            follow = self._normalized
        if follow is not None:
            return np.broadcast_to(follow(layer, self._last_axis(numbers)), shape)
        if kind in _SAME_SHAPE:
            return numbers
        if kind in _OVER_POSITIONS:
            return np.broadcast_to(self._last_axis(numbers), shape)
        if kind in ("Flatten", "Reshape"):
            if kind == "Reshape":
                self._shaped[layer.name] = numbers.reshape(shape)
            return numbers.reshape(shape)
        if kind in _JOINED:
            return self._join(given)
        if kind == "Concatenate":
            axis = config["axis"]
            return np.concatenate(given, axis=axis - 1 if axis > 0 else axis)
        raise UnsupportedLayerError(f"{layer.name}: filters cannot be followed through a layer of type {kind}")

    def _kernel(self, layer: Any, read: np.ndarray) -> np.ndarray:
        kind = type(layer).__name__
        repeated = np.repeat(read, getattr(layer, "depth_multiplier", 1))
        if kind in _DEPTHWISE:
            self.axes[layer.name] = [{-2: read}, {-1: repeated}][: len(layer.get_weights())]
            return repeated
        made = self._new(layer, layer.get_weights()[1 if kind in _SEPARABLE else 0].shape[-1])
        kernels: list[Axes] = [{-2: read, -1: made}]
        if kind in _SEPARABLE:
            kernels = [{-2: read}, {-2: repeated, -1: made}]
        self.axes[layer.name] = [*kernels, {-1: made}][: len(layer.get_weights())]
        return made

    def _normalized(self, layer: Any, read: np.ndarray) -> np.ndarray:
        self.axes[layer.name] = [{-1: read}] * len(layer.get_weights())
        return read


def fraction_cut(
    channels: Channels, scores: Mapping[str, np.ndarray], keep: float, layers: Mapping[str, float]
) -> list[int]:
    """Roots to cut so that each layer keeps a fraction of its filters, those of high score.

    Args:
        channels: of the model.
        scores: layer to one score a filter; tied filters are judged by the mean of theirs.
        keep: fraction, at least one filter of a layer stays.
        layers: fractions of their own; of tied layers the largest counts.
    """
    cut: list[int] = []
    for names in channels.groups():
        roots = np.concatenate([channels.roots(channels.made[name]) for name in names])
        score = np.concatenate([scores[name] / max(float(scores[name].mean()), 1e-30) for name in names])
        free = np.unique(roots[roots != FIXED])
        mean = np.array([score[roots == root].mean() for root in free])
        best = free[np.argsort(-mean, kind="stable")]
        part = max(layers.get(name, keep) for name in names)
        stay = set(best[: max(1, round(part * len(free)))].tolist()) | {FIXED}
        for name in names:  # a layer joined with others by Concatenate might lose all of its own
            mine = set(channels.roots(channels.made[name]).tolist())
            if not mine & stay:
                stay.add(next(root for root in best.tolist() if root in mine))
        cut += [int(root) for root in free if root not in stay]
    return cut


def cost(model: Any) -> dict[str, int]:
    """Weights, and multiply-accumulates for one sample (padding counted as if it were data)."""
    macs = 0
    for layer in model.layers:
        positions = int(np.prod(layer.output_shape[1:-1])) if isinstance(layer.output_shape, tuple) else 0
        macs += positions * sum(int(weight.size) for weight in layer.get_weights() if weight.ndim >= 2)
    return {"weights": int(model.count_params()), "macs": macs}


def _shape(tensor: Any, name: str) -> tuple[int, ...]:
    shape = tuple(tensor.shape[1:])
    if not shape or None in shape:
        raise UnsupportedLayerError(f"{name}: its shape {shape} is not fixed; give the model's input a whole shape")
    return shape


def _without_gaps(name: str, kept: np.ndarray) -> tuple[int, ...]:
    """Shape of what stays; it must be whole rows, columns and so on."""
    along = [kept.any(axis=tuple(other for other in range(kept.ndim) if other != axis)) for axis in range(kept.ndim)]
    if int(np.prod([part.sum() for part in along])) != kept.sum():
        raise UnsupportedLayerError(f"{name}: its output would have gaps; end the filters that it mixes with a Dense")
    return tuple(int(part.sum()) for part in along)


def _taken(array: np.ndarray, axes: Axes, kept: np.ndarray) -> np.ndarray:
    for axis, numbers in axes.items():
        array = np.take(array, np.flatnonzero(kept[numbers]), axis=axis)
    return array
