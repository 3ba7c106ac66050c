"""Metrics, calibration, transforms and snapshots: their laws."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cloud import features
from cloud.errors import DataError, TaskError
from cloud.learning import calibration, metrics, snapshot
from cloud.learning.task import ImputeStep, ScaleStep, Task, TransformPlan, load_task
from contract.transform import Column, Mean, Transform

DIGITS = load_task("fieldfare.digits")


@given(arrays.arrays(np.float64, (7, 4), elements=st.floats(-50, 50)), st.floats(0.1, 10))
def test_probabilities_add_up_and_keep_the_top_class(logits: np.ndarray, temperature: float) -> None:
    probabilities = metrics.softmax(logits, temperature)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (probabilities.max(axis=1) >= probabilities[np.arange(7), logits.argmax(axis=1)] - 1e-12).all()


def test_cross_entropy_is_the_mean_surprise() -> None:
    logits, y = np.random.default_rng(0).normal(size=(50, 3)), np.arange(50) % 3
    expected = -np.log(metrics.softmax(logits, 2.0)[np.arange(50), y]).mean()
    assert metrics.cross_entropy(logits, y, 2.0) == pytest.approx(expected)


def test_calibration_error_is_zero_where_confidence_is_right_and_large_where_it_is_not() -> None:
    y = np.array([0, 0, 0, 1])
    assert metrics.calibration_error(np.tile([0.75, 0.25], (4, 1)), y) == pytest.approx(0)
    assert metrics.calibration_error(np.tile([1.0, 0.0], (4, 1)), y) == pytest.approx(0.25)


def test_accuracy_by_group_weighs_up_to_the_whole() -> None:
    rng = np.random.default_rng(1)
    logits, y, group = rng.normal(size=(90, 4)), rng.integers(0, 4, 90), rng.choice(["a", "b", "c"], 90)
    parts = metrics.by_group(logits, y, group)
    assert sum(parts[name] * (group == name).sum() for name in parts) / 90 == pytest.approx(metrics.accuracy(logits, y))


@given(st.floats(0.3, 4.0))
def test_the_temperature_that_logits_were_spoiled_with_is_found(spoiled: float) -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(4000, 5)) * 2
    y = np.array([rng.choice(5, p=row) for row in metrics.softmax(logits[:1500])])
    assert calibration.temperature(logits[:1500] * spoiled, y) == pytest.approx(spoiled, rel=0.15)


def test_calibration_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="got none"):
        calibration.temperature(np.zeros((0, 3)), np.zeros(0, int))


def tabular(*steps: ImputeStep | ScaleStep) -> Task:
    plan = TransformPlan(steps=list(steps), features=[Column("first", 0), Mean("mean")])
    return dataclasses.replace(DIGITS, input_shape=(3,), transform=plan)


def test_a_standard_scale_is_fitted_to_each_column() -> None:
    x = np.random.default_rng(3).normal([1, 20, 300], [1, 2, 3], size=(500, 3))
    fitted = Transform(features.fit(tabular(ScaleStep(fit="standard")), x)).apply(x)
    np.testing.assert_allclose(fitted.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(fitted.std(axis=0), 1, atol=1e-4)


def test_a_step_is_fitted_on_what_the_steps_before_it_give() -> None:
    x = np.array([[0.0, 1, np.nan], [10, 3, 4], [5, 2, 8]])
    spec = features.fit(tabular(ImputeStep(fit="median"), ScaleStep(fit="range")), x)
    fitted = Transform(spec).apply(x)
    assert fitted.min() == 0
    assert fitted.max() == 1
    assert fitted[0, 2] == pytest.approx((3.5 - 3.5) / 4.5)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (ScaleStep(), "either `offset`"),
        (ScaleStep(offset=[0.0], divisor=[1.0], fit="range"), "both"),
        (ImputeStep(), "either `value`"),
        (ScaleStep(fit="standard"), "column 2 never changes"),
        (ScaleStep(offset=[0.0], divisor=[0.0]), "divisors other than zero"),
    ],
)
def test_a_plan_that_cannot_be_fitted_is_refused(step: ImputeStep | ScaleStep, message: str) -> None:
    x = np.column_stack([np.arange(5.0), np.arange(5.0), np.ones(5)])
    with pytest.raises(TaskError, match=message):
        features.fit(tabular(step), x)


def test_the_transform_of_digits_gives_numbers_from_0_to_1() -> None:
    data = DIGITS.load_data()
    spec = features.fit(DIGITS, data["x"][data["part"] == "train"])
    x = Transform(spec).apply(data["x"])
    assert (x.min(), x.max()) == (0, 1)
    assert Transform(spec).feature_names == ("brightness", "contrast", "sharpness", "tilt")


def test_a_snapshot_gives_back_the_same_data_and_has_one_name() -> None:
    data = DIGITS.load_data()
    taken = snapshot.take("digits", {"devices": 5}, data)
    assert snapshot.take("digits", {"devices": 5}, DIGITS.load_data()).manifest.digest() == taken.manifest.digest()
    back = snapshot.load(snapshot.manifest_of(taken.manifest.fields()), taken.files.__getitem__)
    for name, column in data.items():
        order = np.argsort(data["part"], kind="stable"), np.argsort(back["part"], kind="stable")
        assert (back[name][order[1]] == column[order[0]]).all()


def test_a_changed_byte_in_a_snapshot_is_noticed() -> None:
    taken = snapshot.take("digits", {}, DIGITS.load_data())
    spoiled = {sha: content[:-1] + bytes([content[-1] ^ 1]) for sha, content in taken.files.items()}
    with pytest.raises(DataError, match=r"train.*not those of the manifest"):
        snapshot.load(taken.manifest, spoiled.__getitem__)


def test_something_else_is_no_manifest() -> None:
    with pytest.raises(DataError, match="not a snapshot manifest"):
        snapshot.manifest_of({"files": 3})
