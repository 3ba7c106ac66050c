"""The digits task: who has which images, and what a drifting camera does to them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.transform import Mean, Scale, Sharpness, Spread, Tilt, Transform, TransformSpec
from fieldfare.digits import camera, task

seeds = st.integers(0, 2**16)


@settings(max_examples=15)
@given(devices=st.integers(1, 8), seed=seeds)
def test_no_image_is_in_two_shares_and_none_is_lost(devices: int, seed: int) -> None:
    shares = task.shares(devices, seed)
    everything = np.concatenate([shares.train, shares.validation, shares.test, *shares.devices.values()])
    assert sorted(everything) == list(range(1797))


@settings(max_examples=15)
@given(devices=st.integers(1, 8), seed=seeds)
def test_every_device_has_enough_images(devices: int, seed: int) -> None:
    sizes = [len(index) for index in task.shares(devices, seed).devices.values()]
    assert len(sizes) == devices
    assert min(sizes) >= task.SMALLEST_DEVICE


def test_shares_depend_on_the_seed_alone() -> None:
    first, again, other = task.shares(5, 3), task.shares(5, 3), task.shares(5, 4)
    assert all((first.devices[name] == again.devices[name]).all() for name in first.devices)
    assert set(first.test) != set(other.test)


def test_more_devices_than_images_are_refused_with_the_most_that_may_be() -> None:
    with pytest.raises(ValueError, match="1 to 8"):
        task.shares(40)


def test_devices_see_the_digits_in_other_proportions() -> None:
    counts = np.array([np.bincount(y, minlength=10) / len(y) for _, y in task.device_samples(5, 0).values()])
    assert (counts.max(axis=0) > 1.5 * counts.min(axis=0)).sum() >= 8


def test_test_images_are_given_to_devices_with_the_same_skew() -> None:
    data = task.load_data(5, 0)
    test = data["part"] == "test"
    for name, (_, y) in task.device_samples(5, 0).items():
        mine = data["y"][test & (data["device"] == name)]
        seen, own = np.bincount(mine, minlength=10) / len(mine), np.bincount(y, minlength=10) / len(y)
        assert np.abs(seen - own).sum() / 2 < 0.35  # total variation; sampling noise of about 70 images


def test_no_image_of_a_device_is_in_the_snapshot_data() -> None:
    shares = task.shares(5, 0)
    data = task.load_data(5, 0)
    assert len(data["x"]) == 1797 - sum(len(index) for index in shares.devices.values())
    assert set(data["device"][data["part"] != "test"]) == {task.LAB}
    assert data["x"].dtype == np.uint8
    assert data["x"].shape[1:] == (8, 8, 1)


images = task.load_data(5, 0)["x"][:80]


@given(seed=seeds)
def test_drift_keeps_shape_type_and_levels(seed: int) -> None:
    drifted = camera.drift(images, seed)
    assert drifted.shape == images.shape
    assert drifted.dtype == np.uint8
    assert drifted.max() <= camera.LEVELS
    assert (drifted == camera.drift(images, seed)).all()


def test_each_operation_does_what_its_name_says() -> None:
    features = [Mean("brightness"), Spread("contrast"), Sharpness("sharpness"), Tilt("tilt")]
    transform = Transform(TransformSpec(input_shape=[8, 8, 1], steps=[Scale([0.0], [16.0])], features=features))

    def mean(x: np.ndarray) -> np.ndarray:
        return transform.features(transform.apply(x)).mean(axis=0)

    clean = mean(images)
    assert mean(camera.contrast(images, 0.5, 0.0))[1] < 0.6 * clean[1]
    assert mean(camera.contrast(images, 1.0, 3.0))[0] > clean[0]
    assert mean(camera.blur(images, 1.0))[2] < 0.8 * clean[2]
    turned = [mean(camera.rotate(images, np.full(len(images), angle)))[3] for angle in (-20.0, 20.0)]
    assert abs(turned[0] - turned[1]) > 0.3


def test_no_turn_no_change() -> None:
    assert (camera.rotate(images, np.zeros(len(images))) == images).all()
