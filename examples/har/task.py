"""Data and model of the activity task (Anguita et al. 2013, ESANN)."""

import os
from pathlib import Path
from typing import Any

import numpy as np

VALIDATION, TEST = (
    (5, 16, 26),
    (11, 21, 27, 30),
)  # people; windows of one person overlap, so that no person is in two parts


def build_model(keras: Any) -> Any:
    """Three convolutions over time: (samples, 128, 9) in g and rad/s to logits (samples, 6)."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((128, 9)),
            layers.Conv1D(64, 5, padding="same", activation="relu", name="moves"),
            layers.MaxPooling1D(2, name="halve"),
            layers.Conv1D(64, 5, padding="same", activation="relu", name="steps"),
            layers.MaxPooling1D(4, name="eighth"),
            layers.Conv1D(64, 5, padding="same", activation="relu", name="gaits"),
            layers.MaxPooling1D(4, name="short"),
            layers.Flatten(name="flat"),
            layers.Dense(64, activation="relu", name="activity"),
            layers.Dense(6, name="logits"),
        ],
        name="har",
    )


def load_data(data: str = "") -> dict[str, np.ndarray]:
    """Windows of 21 people; each person is a device, and in one part.

    Args:
        data: folder that holds `uci_har`; empty is the variable FIELDFARE_DATA.

    Returns:
        `x` float32 (n, 128, 9) in g and rad/s, `y` int64 (n,), `device` and `part` text (n,).
    """
    path = Path(data or os.environ.get("FIELDFARE_DATA", "")) / "uci_har" / "har_train21.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            x = (file["x_q"] * file["scale"][:, None]).astype(np.float32).transpose(0, 2, 1)
            y, person = file["y"].astype(np.int64), file["subject"]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: set FIELDFARE_DATA to the folder with uci_har") from error
    part = np.full(len(y), "train", dtype="<U10")
    part[np.isin(person, VALIDATION)] = "validation"
    part[np.isin(person, TEST)] = "test"
    device = np.array([f"person-{number:02d}" for number in person])
    return {"x": np.ascontiguousarray(x), "y": y, "device": device, "part": part}
