"""What an image looks like, in numbers: against a slow twin, and the same alone as among others."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from contract.errors import TransformError
from contract.transform import Column, Feature, Mean, Share, Sharpness, Spread, Tilt, Transform, TransformSpec

IMAGE: list[Feature] = [
    Mean("brightness"),
    Share("dark", high=0.25),
    Spread("contrast"),
    Share("light", 0.25),
    Sharpness("sharpness"),
    Column("first", 0),
    Tilt("tilt"),
    Share("half dark", -0.5, 0.5),
]
SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 3))
PIXELS = st.floats(0, 1, width=32)


def _measure(features: list[Feature], values: np.ndarray) -> np.ndarray:
    return Transform(TransformSpec(input_shape=list(values.shape[1:]), steps=[], features=features)).features(values)


def _slowly(values: np.ndarray) -> list[float]:
    """Mean, dark, contrast, light, sharpness of one image in float64."""
    x = values.astype(np.float64)
    down, across = np.abs(np.diff(x, axis=0)), np.abs(np.diff(x, axis=1))
    sharpness = [d.mean() if d.size else 0.0 for d in (down, across)]
    return [x.mean(), (x < 0.25).mean(), x.std(), (x >= 0.25).mean(), sum(sharpness) / 2]


@given(SHAPES.flatmap(lambda shape: hnp.arrays(np.float32, (3, *shape), elements=PIXELS)))
def test_features_are_what_they_say_whatever_the_size_of_the_image(values: np.ndarray) -> None:
    measured = _measure(IMAGE, values)
    assert measured.dtype == np.float32
    for row, image in zip(measured, values, strict=True):
        np.testing.assert_allclose(row[:5], _slowly(image), atol=1e-5)
        assert row[5] == image.reshape(-1)[0]
        assert row[7] == np.float32((image < 0.5).sum() / np.float32(image.size))


@pytest.mark.parametrize("shape", [(28, 28, 1), (96, 96, 3), (64, 64, 1), (5, 3, 2)])
def test_an_image_measures_the_same_alone_and_among_others(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).random((23, *shape), np.float32)
    together = _measure(IMAGE, values)
    for count in (1, 2, 7):
        for start in range(0, len(values), count):
            assert _measure(IMAGE, values[start : start + count]).tobytes() == together[start : start + count].tobytes()
    np.testing.assert_allclose(together[0, :5], _slowly(values[0]), rtol=1e-4)


def test_shares_of_neighbouring_ranges_add_up_to_one() -> None:
    edges = [-1.0, 0.1, 0.3, 0.35, 2.0]
    features: list[Feature] = [Share(f"{low}", low, high) for low, high in pairwise(edges)]
    shares = _measure(features, np.random.default_rng(2).random((4, 64, 64, 3), np.float32))
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(shares[:, 1], 0.2, atol=0.02)


def test_no_features_and_no_samples_give_an_empty_table() -> None:
    assert _measure([], np.zeros((3, 2, 2, 1), np.float32)).shape == (3, 0)
    assert _measure(IMAGE, np.zeros((0, 2, 2, 1), np.float32)).shape == (0, len(IMAGE))


def test_a_share_may_be_open_to_one_side_or_have_a_bound_beyond_float32() -> None:
    features: list[Feature] = [
        Share("all"),
        Share("below", None, 0.5),
        Share("above", 0.5),
        Share("wide", -1e300, 1e300),
    ]
    measured = _measure(features, np.array([[0.1, 0.5, 0.7, 0.9]], np.float32))
    np.testing.assert_allclose(measured, [[1.0, 0.25, 0.75, 1.0]])


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (1.0, 1.0 + 1e-12)])
def test_a_share_of_an_empty_range_is_refused(low: float, high: float) -> None:
    with pytest.raises(TransformError, match="low < high"):
        Transform(TransformSpec(input_shape=[4], steps=[], features=[Share("a", low, high)]))
