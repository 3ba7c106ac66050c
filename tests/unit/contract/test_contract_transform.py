import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from contract import transform
from contract.errors import ContractError, TransformError
from contract.transform import (
    Clip,
    Column,
    Impute,
    Mean,
    Reshape,
    Scale,
    Sharpness,
    Spread,
    Tilt,
    Transform,
    TransformSpec,
)

IMAGE = TransformSpec(
    input_shape=[4, 4, 1],
    steps=[Scale([0.0], [16.0])],
    features=[Mean("brightness"), Spread("contrast"), Sharpness("sharpness"), Tilt("tilt")],
)


@given(hnp.arrays(np.uint8, (3, 4, 4, 1), elements=st.integers(0, 16)))
def test_a_spec_that_went_over_the_wire_computes_the_same_bits(raw: np.ndarray) -> None:
    here, there = Transform(IMAGE), Transform(transform.decode(IMAGE.encode()))

    assert here.spec.digest() == there.spec.digest()
    assert here.apply(raw).tobytes() == there.apply(raw).tobytes()
    assert here.features(here.apply(raw)).tobytes() == there.features(there.apply(raw)).tobytes()


@given(hnp.arrays(np.float32, (5, 4, 4, 1), elements=st.floats(0, 16, width=32)))
def test_a_sample_is_transformed_the_same_alone_and_in_a_batch(raw: np.ndarray) -> None:
    whole = Transform(IMAGE)
    batch = whole.apply(raw)
    for index in range(len(raw)):
        assert (whole.apply(raw[index : index + 1]) == batch[index]).all()


def test_steps_do_what_they_say() -> None:
    spec = TransformSpec(
        input_shape=[4],
        steps=[Impute(5.0), Clip(0.0, 10.0), Scale([1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0]), Reshape([2, 2])],
        features=[Column("last", 3)],
    )
    got = Transform(spec).apply(np.array([[np.nan, -3.0, 100.0, 9.0]]))

    np.testing.assert_allclose(got, [[[4.0, -0.5], [3.0, 2.0]]])
    np.testing.assert_allclose(Transform(spec).features(got), [[2.0]])


def test_features_of_a_known_image() -> None:
    image = np.zeros((1, 4, 4, 1), np.float32)
    image[0, :, 1] = 16.0
    features = dict(zip(Transform(IMAGE).feature_names, Transform(IMAGE).features(image / 16)[0], strict=True))

    assert features["brightness"] == pytest.approx(0.25)
    assert features["contrast"] == pytest.approx(np.sqrt(0.25 * 0.75))
    assert features["sharpness"] == pytest.approx((0 + 8 / 12) / 2)


def test_no_samples_give_no_rows() -> None:
    whole = Transform(IMAGE)
    values = whole.apply(np.zeros((0, 4, 4, 1), np.uint8))

    assert values.shape == (0, 4, 4, 1)
    assert whole.features(values).shape == (0, 4)


def test_tilt_follows_the_rotation_of_a_line() -> None:
    spec = TransformSpec(input_shape=[9, 9, 1], steps=[], features=[Tilt("tilt")])
    upright, leaning = np.zeros((1, 9, 9, 1), np.float32), np.zeros((1, 9, 9, 1), np.float32)
    upright[0, :, 4] = 1
    leaning[0, range(9), range(9)] = 1

    tilt = Transform(spec).features(np.concatenate([upright, leaning]))[:, 0]
    np.testing.assert_allclose(tilt, [0.0, np.pi / 4], atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TransformSpec(input_shape=[2], steps=[Scale([0.0], [0.0])], features=[]), "zero"),
        (TransformSpec(input_shape=[2], steps=[Scale([0.0], [1e-60])], features=[]), "zero"),
        (TransformSpec(input_shape=[2], steps=[Scale([1e60], [1.0])], features=[]), "finite"),
        (TransformSpec(input_shape=[2**33, 2**32], steps=[Reshape([2**32, 2**34])], features=[]), "at most"),
        (TransformSpec(input_shape=[2], steps=[Scale([0.0] * 3, [1.0])], features=[]), "entries"),
        (TransformSpec(input_shape=[2], steps=[Clip(1.0, 1.0)], features=[]), "low < high"),
        (TransformSpec(input_shape=[2], steps=[Reshape([3])], features=[]), "cannot reshape"),
        (TransformSpec(input_shape=[], steps=[], features=[]), "positive"),
        (TransformSpec(input_shape=[2], steps=[], features=[Column("a", 2)]), "outside"),
        (TransformSpec(input_shape=[2], steps=[], features=[Tilt("a")]), "images"),
        (TransformSpec(input_shape=[2], steps=[], features=[Mean("a"), Mean("a")]), "twice"),
        (TransformSpec(input_shape=[2], steps=[], features=[], revision=2), "newer"),
    ],
)
def test_a_spec_that_cannot_run_is_refused_before_it_runs(spec: TransformSpec, message: str) -> None:
    with pytest.raises(TransformError, match=message):
        Transform(spec)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros((1, 3, 4, 1)), "shape"),
        (np.array([["a"] * 16]).reshape(1, 4, 4, 1), "real numbers"),
        (np.full((2, 4, 4, 1), np.nan), "sample 0 is not finite"),
    ],
)
def test_input_that_does_not_fit_is_refused(raw: np.ndarray, message: str) -> None:
    with pytest.raises(TransformError, match=message):
        Transform(IMAGE).apply(raw)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_spec_or_refused(data: bytes) -> None:
    with contextlib.suppress(ContractError):
        Transform(transform.decode(data))


@pytest.mark.parametrize("shape", [[1] * 9, [4] * 8 + [4] * 4, [2**40], [2**62, 2**62]])
def test_a_sample_of_absurd_size_is_refused(shape: list[int]) -> None:
    with pytest.raises(TransformError, match="at most"):
        Transform(TransformSpec(input_shape=shape, steps=[], features=[Mean("m")]))


def test_a_reshape_to_too_many_axes_is_refused() -> None:
    with pytest.raises(TransformError, match="cannot reshape"):
        Transform(TransformSpec(input_shape=[4], steps=[Reshape([1] * 30 + [4])], features=[Mean("m")]))
