"""Data and model of the digits task.

A laboratory has some labelled images to train the first model on. Each device (a meter's camera) has its own, which
never leave it: other amounts, and other digits more often. A part that nobody trains on is the test set.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

LAB_SHARE, TEST_SHARE = 0.45, 0.20  # of all images; the devices have the rest
VALIDATION_SHARE = 0.2  # of the laboratory's images
SKEW = 2.0  # Dirichlet concentration of a device's digits: smaller is less alike (Hsu et al. 2019, arXiv:1909.06335)
SMALLEST_DEVICE = 60  # images
LAB = "lab"


@dataclass(frozen=True)
class Shares:
    """Who has which images, as indices into scikit-learn's 1,797; no index is in two shares.

    Attributes:
        train, validation: the laboratory's.
        test: nobody's.
        devices: by name, what each device has.
        test_device: for each of `test`, the device that would see such an image.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    devices: Mapping[str, np.ndarray]
    test_device: np.ndarray


def build_model(keras: Any) -> Any:
    """A small convolutional network, 13,706 weights: (samples, 8, 8, 1) in [0, 1] to logits (samples, 10)."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu", name="edges"),
            layers.MaxPooling2D(name="halve"),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="strokes"),
            layers.MaxPooling2D(name="quarter"),
            layers.Flatten(name="flat"),
            layers.Dense(64, activation="relu", name="shape"),
            layers.Dense(10, name="logits"),
        ],
        name="digits",
    )


def load_data(devices: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """The laboratory's images and the test images; what the devices have is not in it.

    Returns:
        `x` uint8 (n, 8, 8, 1) in 0..16, `y` int64 (n,), `device` and `part` text (n,); part is one of
        train, validation, test.
    """
    images, classes = _images()
    share = shares(devices, seed)
    parts = {"train": share.train, "validation": share.validation, "test": share.test}
    index = np.concatenate(list(parts.values()))
    lab = np.full(len(share.train) + len(share.validation), LAB)
    return {
        "x": images[index],
        "y": classes[index],
        "device": np.concatenate([lab, share.test_device]),
        "part": np.repeat(list(parts), [len(part) for part in parts.values()]),
    }


def device_samples(devices: int = 5, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What each device has: name (`meter-1`, ...) to images uint8 (n, 8, 8, 1) and classes int64 (n,)."""
    images, classes = _images()
    return {name: (images[index], classes[index]) for name, index in shares(devices, seed).devices.items()}


def shares(devices: int = 5, seed: int = 0) -> Shares:
    """Deal the images out: the same arguments always give the same shares.

    Raises:
        ValueError: so many devices that some would have fewer than `SMALLEST_DEVICE` images.
    """
    _, classes = _images()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(classes))
    lab, test, rest = np.split(order, [int(LAB_SHARE * len(order)), int((LAB_SHARE + TEST_SHARE) * len(order))])
    if not 1 <= devices <= len(rest) // (SMALLEST_DEVICE + 10):
        most = len(rest) // (SMALLEST_DEVICE + 10)
        raise ValueError(
            f"{devices} devices: the digits are enough for 1 to {most} of at least {SMALLEST_DEVICE} images"
        )
    names = np.array([f"meter-{number}" for number in range(1, devices + 1)])
    while True:
        digits = _class_shares(devices, rng)
        owner = _owners(classes[rest], digits, rng)
        if np.bincount(owner, minlength=devices).min() >= SMALLEST_DEVICE:
            break
    held_out = int(VALIDATION_SHARE * len(lab))
    return Shares(
        train=lab[held_out:],
        validation=lab[:held_out],
        test=test,
        devices={str(name): rest[owner == number] for number, name in enumerate(names)},
        test_device=names[_owners(classes[test], digits, rng)],
    )


def _class_shares(devices: int, rng: np.random.Generator) -> np.ndarray:
    """For each digit, the part of its images that each device sees: (10, devices), rows add up to 1."""
    sizes = rng.dirichlet(np.full(devices, 20.0))
    digits = rng.dirichlet(np.full(10, SKEW), size=devices)
    weights = (sizes[:, None] * digits).T
    return weights / weights.sum(axis=1, keepdims=True)


def _owners(classes: np.ndarray, digits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    draws = rng.random(len(classes))
    owners = (digits.cumsum(axis=1)[classes] < draws[:, None]).sum(axis=1)
    return np.minimum(owners, digits.shape[1] - 1)


def _images() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images.astype(np.uint8)[..., None], bunch.target.astype(np.int64)
