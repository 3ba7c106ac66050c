"""What goes into compression, looked at before it is used: representative samples, classes, weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from compression.errors import RecipeError, StageError


def representative(x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return model input that can show ranges of activations.

    Args:
        x: float32 (n, *shape).
        shape: of one sample.

    Raises:
        RecipeError: no samples, another shape or type, or values that are not finite.
    """
    if not len(x):
        raise RecipeError("representative samples: there are none; the snapshot's training part is empty")
    if tuple(x.shape[1:]) != tuple(shape) or x.dtype != np.float32:
        raise RecipeError(f"representative samples: {x.dtype}{x.shape[1:]}, the model takes float32{tuple(shape)}")
    bad = ~np.isfinite(x.reshape(len(x), -1)).all(axis=1)
    if bad.any():
        raise RecipeError(f"representative samples: sample {int(bad.argmax())} has values that are not finite")
    return x


def labels(x: np.ndarray, y: np.ndarray, classes: int) -> None:
    """Check that every sample has a class that the model gives.

    Raises:
        RecipeError: two lengths, or a class outside 0 to classes - 1.
    """
    if len(x) != len(y) or not len(y):
        raise RecipeError(
            f"training samples: {len(x)} samples and {len(y)} classes; they must be as many, and not none"
        )
    wrong = (y < 0) | (y >= classes)
    if wrong.any():
        index = int(wrong.argmax())
        raise RecipeError(f"training samples: sample {index} is of class {int(y[index])}, the model has {classes}")


def weights(model: Any) -> None:
    """Check that a model's weights are numbers.

    Raises:
        StageError: naming the layer and the weight.
    """
    for layer in model.layers:
        for variable, value in zip(layer.weights, layer.get_weights(), strict=True):
            if not np.isfinite(value).all():
                raise StageError(f"layer {layer.name!r}: {variable.name} has values that are not finite")
