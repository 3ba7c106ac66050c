"""Data and model of the Fashion-MNIST task (Xiao et al. 2017, arXiv:1708.07747)."""

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np

VALIDATION = 5000  # images of the training file, its last ones
FILES = {"train": "train", "test": "t10k"}


def build_model(keras: Any) -> Any:
    """Two convolutions and a dense layer, 421,642 weights: (samples, 28, 28, 1) in [0, 1] to logits (samples, 10)."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="edges"),
            layers.MaxPooling2D(name="halve"),
            layers.Conv2D(64, 3, padding="same", activation="relu", name="shapes"),
            layers.MaxPooling2D(name="quarter"),
            layers.Flatten(name="flat"),
            layers.Dense(128, activation="relu", name="clothes"),
            layers.Dense(10, name="logits"),
        ],
        name="fashion",
    )


def load_data(data: str = "", seed: int = 0) -> dict[str, np.ndarray]:
    """The images; the last 5,000 of the training file, shuffled by `seed`, are the validation part.

    Args:
        data: folder that holds `fashion_mnist`; empty is the variable FIELDFARE_DATA.
        seed: which images are validation.

    Returns:
        `x` uint8 (n, 28, 28, 1), `y` int64 (n,), `device` and `part` text (n,).
    """
    folder = Path(data or os.environ.get("FIELDFARE_DATA", "")) / "fashion_mnist"
    x, y, part = [], [], []
    for name, stem in FILES.items():
        try:
            images = gzip.decompress((folder / f"{stem}-images-idx3-ubyte.gz").read_bytes())
            labels = gzip.decompress((folder / f"{stem}-labels-idx1-ubyte.gz").read_bytes())
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error.filename}: set FIELDFARE_DATA to the folder with fashion_mnist") from error
        x.append(np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28, 1))
        y.append(np.frombuffer(labels, np.uint8, offset=8).astype(np.int64))
        part.append(np.full(len(y[-1]), name, dtype="<U10"))
    held_out = np.random.default_rng(seed).permutation(len(y[0]))[-VALIDATION:]
    part[0][held_out] = "validation"
    device = np.full(sum(map(len, y)), "studio")
    return {"x": np.concatenate(x), "y": np.concatenate(y), "device": device, "part": np.concatenate(part)}
