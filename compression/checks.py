"""What goes into compression, looked at before it is used: representative samples, classes, weights."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compression.errors import RecipeError, StageError

if TYPE_CHECKING:
    from compression.source import Source


def source(origin: "Source") -> None:
    """Everything that a compression starts from, before anything heavy is loaded.

    Raises:
        StageError: weights that are not finite, by name.
        RecipeError: a part whose samples or classes make no sense.
    """
    for name, array in origin.weights.items():
        if not np.isfinite(array).all():
            raise StageError(f"weight {name!r} of the version has values that are not finite; train it again")
    shape = origin.train.x.shape[1:]
    for part in ("train", "validation", "test"):
        found = getattr(origin, part)
        labels(found.x, found.y, len(origin.task.labels), f"{part} samples")
        representative(found.x, shape, f"{part} samples")
    if origin.unlabelled is not None:
        representative(origin.unlabelled, shape, "unlabelled samples")


def representative(x: np.ndarray, shape: Sequence[int], what: str = "representative samples") -> np.ndarray:
    """Return model input that can show ranges of activations.

    Args:
        x: float32 (n, *shape).
        shape: of one sample.
        what: they are, for messages.

    Raises:
        RecipeError: no samples, another shape or type, or values that are not finite.
    """
    if not len(x):
        raise RecipeError(f"{what}: there are none")
    if tuple(x.shape[1:]) != tuple(shape) or x.dtype != np.float32:
        raise RecipeError(f"{what}: {x.dtype}{x.shape[1:]}, the model takes float32{tuple(shape)}")
    bad = ~np.isfinite(x.reshape(len(x), -1)).all(axis=1)
    if bad.any():
        raise RecipeError(f"{what}: sample {int(bad.argmax())} has values that are not finite")
    return x


def labels(x: np.ndarray, y: np.ndarray, classes: int, what: str = "training samples") -> None:
    """Check that every sample has a class that the model gives.

    Raises:
        RecipeError: two lengths, no integers, or a class outside 0 to classes - 1.
    """
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise RecipeError(f"{what}: classes are {y.dtype}{y.shape}, they must be integers of shape (n,)")
    if len(x) != len(y) or not len(y):
        raise RecipeError(f"{what}: {len(x)} samples and {len(y)} classes; they must be as many, and not none")
    wrong = (y < 0) | (y >= classes)
    if wrong.any():
        index = int(wrong.argmax())
        raise RecipeError(f"{what}: sample {index} is of class {int(y[index])}, the model has {classes}")


def weights(model: Any) -> None:
    """Check that a model's weights are numbers.

    Raises:
        StageError: naming the layer and the weight.
    """
    for layer in model.layers:
        for variable, value in zip(layer.weights, layer.get_weights(), strict=True):
            if not np.isfinite(value).all():
                raise StageError(f"layer {layer.name!r}: {variable.name} has values that are not finite")
