"""ResNet8 of MLPerf Tiny on CIFAR-10 (Banbury et al. 2021, arXiv:2106.07597, section 4.2), with published weights."""

import os
from pathlib import Path
from typing import Any

import numpy as np

VALIDATION = 1000  # of the 5,000 training images
STAGES = ((16, 1), (32, 2), (64, 2))  # filters and stride of each residual block


def build_model(keras: Any) -> Any:
    """The published network without its softmax: (samples, 32, 32, 3) from 0 to 255, to logits (samples, 10)."""
    layers = keras.layers

    def convolution(x: Any, number: int, filters: int, size: int, stride: int) -> Any:
        name = f"conv2d_{number}" if number else "conv2d"
        return layers.Conv2D(filters, size, stride, padding="same", name=name)(x)

    def normalised(x: Any, number: int) -> Any:
        return layers.BatchNormalization(name=f"batch_normalization_{number}" if number else "batch_normalization")(x)

    inputs = keras.Input((32, 32, 3), name="image")
    x = layers.Activation("relu", name="activation")(normalised(convolution(inputs, 0, 16, 3, 1), 0))
    number, norm = 1, 1
    for block, (filters, stride) in enumerate(STAGES):
        y = convolution(x, number, filters, 3, stride)
        y = layers.Activation("relu", name=f"activation_{2 * block + 1}")(normalised(y, norm))
        y = normalised(convolution(y, number + 1, filters, 3, 1), norm + 1)
        number, norm = number + 2, norm + 2
        if stride > 1:
            x = convolution(x, number, filters, 1, stride)
            number += 1
        x = layers.Add(name=f"add_{block}" if block else "add")([x, y])
        x = layers.Activation("relu", name=f"activation_{2 * block + 2}")(x)
    x = layers.Flatten(name="flatten")(layers.AveragePooling2D(8, name="average_pooling2d")(x))
    return keras.Model(inputs, layers.Dense(10, name="dense")(x), name="resnet8")


def load_data(data: str = "", seed: int = 0) -> dict[str, np.ndarray]:
    """The test set, and 5,000 of the training images, of which 1,000 drawn by `seed` are the validation part.

    The published weights saw all training images: what they answer on validation images is better than it should be.

    Args:
        data: folder that holds `cifar10`; empty is the variable FIELDFARE_DATA.
        seed: which images are validation.

    Returns:
        `x` uint8 (n, 32, 32, 3), `y` int64 (n,), `device` and `part` text (n,).
    """
    folder = Path(data or os.environ.get("FIELDFARE_DATA", "")) / "cifar10"
    train, test = (np.load(folder / f"cifar10_{name}.npz") for name in ("train5k", "test"))
    part = np.full(len(train["y"]), "train", dtype="<U10")
    part[np.random.default_rng(seed).permutation(len(part))[:VALIDATION]] = "validation"
    x, y = np.concatenate([train["x"], test["x"]]), np.concatenate([train["y"], test["y"]]).astype(np.int64)
    parts = np.concatenate([part, np.full(len(test["y"]), "test")])
    return {"x": x, "y": y, "device": np.full(len(y), "photos"), "part": parts}
