"""Stages `filter-prune` and `width`: fewer filters and units, so that the model is smaller and faster everywhere.

Unlike zeros of `prune`, which a dense kernel still multiplies, what is cut here is gone from every tensor.
"""

import difflib
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np

from compression import channels, tuning
from compression.channels import Channels
from compression.errors import RecipeError
from compression.stage import Stage, Workbench, Workpiece

Fraction = Annotated[float, msgspec.Meta(gt=0, le=1)]


class FilterPrune(Stage, frozen=True, kw_only=True, tag="filter-prune"):
    """Cut the filters and units that matter least, then fine-tune (Li et al. 2017, arXiv:1608.08710, section 3).

    Layers that Add joins are cut together; the logits never, nor what Add joins to the model's input.

    Attributes:
        keep: fraction of filters that each layer keeps, at least one.
        layers: layer to a fraction of its own; of tied layers the largest counts.
        by: what says how much a filter matters: L1 or L2 norm of its kernel, or the absolute scale of the BatchNorm
            behind it (Liu et al. 2017, arXiv:1708.06519), L2 where there is none.
        epochs: passes over the training samples at `learning_rate` (Adam).
    """

    trains: ClassVar[bool] = True

    keep: Fraction = 0.5
    layers: dict[str, Fraction] = msgspec.field(default_factory=dict)
    by: Literal["l1", "l2", "scale"] = "l2"
    epochs: Annotated[int, msgspec.Meta(ge=0)] = 5
    learning_rate: Annotated[float, msgspec.Meta(gt=0, lt=10)] = 1e-3

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        bench.on_stage(f"cutting filters to {self.keep:.0%}")
        with tuning.quiet():
            model = tuning.tf_keras_model(piece, bench)
            followed = Channels(model)
            _check_names(self.layers, followed)
            cut = channels.fraction_cut(followed, _scores(followed, self.by), self.keep, self.layers)
            smaller = followed.without(cut)
            if self.epochs:
                tuning.fit(smaller, bench, epochs=self.epochs, learning_rate=self.learning_rate)
        return smaller, _notes(followed, smaller)


class Width(Stage, frozen=True, kw_only=True, tag="width"):
    """The same architecture with a multiple of its filters (Howard et al. 2017, arXiv:1704.04861, section 3.3).

    Attributes:
        multiplier: of the filters of every layer but the logits.
        start: of training: `scratch`, or `kept`, the filters of largest L2 norm.
        epochs: passes over the training samples at `learning_rate` (Adam).
    """

    trains: ClassVar[bool] = True

    multiplier: Fraction = 0.5
    start: Literal["scratch", "kept"] = "scratch"
    epochs: Annotated[int, msgspec.Meta(ge=1)] = 10
    learning_rate: Annotated[float, msgspec.Meta(gt=0, lt=10)] = 1e-3

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        bench.on_stage(f"training at {self.multiplier:g} of the width")
        with tuning.quiet():
            model = tuning.tf_keras_model(piece, bench)
            smaller = narrower(model, self.multiplier, seed=bench.seed, keep_weights=self.start == "kept")
            tuning.fit(smaller, bench, epochs=self.epochs, learning_rate=self.learning_rate)
        return smaller, _notes(Channels(model), smaller)


def narrower(model: Any, multiplier: float, *, seed: int, keep_weights: bool = False) -> Any:
    """A tf_keras model of the same architecture with a multiple of the filters.

    Args:
        model: tf_keras, not changed.
        multiplier: above 0, at most 1.
        seed: of new weights.
        keep_weights: those of the filters of largest L2 norm; else new ones.

    Raises:
        UnsupportedLayerError: a layer through which filters cannot be followed.
    """
    import tf_keras

    followed = Channels(model)
    tf_keras.utils.set_random_seed(seed)
    cut = channels.fraction_cut(followed, _scores(followed, "l2"), multiplier, {})
    return followed.without(cut, keep_weights=keep_weights)


def _check_names(layers: dict[str, float], followed: Channels) -> None:
    for name in layers:
        if name not in followed.made:
            near = difflib.get_close_matches(name, followed.made, n=1) or list(followed.made)
            raise RecipeError(f"filter-prune.layers: no layer {name!r} with filters; there is {', '.join(near)}")


def _scores(followed: Channels, by: str) -> dict[str, np.ndarray]:
    """Layer to one score a filter, 0 or more."""
    scales: dict[int, float] = {}
    for layer in followed.model.layers if by == "scale" else ():
        if type(layer).__name__ == "BatchNormalization" and layer.scale:
            numbers = followed.axes[layer.name][0][-1]
            scales.update(zip(numbers.tolist(), np.abs(layer.get_weights()[0]).tolist(), strict=True))
    scores = {}
    for name, numbers in followed.made.items():
        arrays = followed.model.get_layer(name).get_weights()
        kernel = [array for array in arrays if array.ndim >= 2][-1]  # the pointwise one of a separable convolution
        rows = kernel.reshape(-1, kernel.shape[-1])
        if all(int(number) in scales for number in numbers):
            scores[name] = np.array([scales[int(number)] for number in numbers])
        else:
            scores[name] = np.abs(rows).sum(axis=0) if by == "l1" else np.linalg.norm(rows, axis=0)
    return scores


def _notes(followed: Channels, smaller: Any) -> dict[str, Any]:
    before, after = channels.cost(followed.model), channels.cost(smaller)
    filters = {
        name: [len(numbers), int(smaller.get_layer(name).output_shape[-1])] for name, numbers in followed.made.items()
    }
    return {
        "filters": filters,
        "tied": [names for names in followed.groups() if len(names) > 1],
        "left": [name for name, numbers in followed.made.items() if not followed.roots(numbers).any()],
        **{what: [before[what], after[what]] for what in before},
    }
