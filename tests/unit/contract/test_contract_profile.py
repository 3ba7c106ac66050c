import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import codec, limits, profile
from contract.errors import ProfileError
from contract.profile import Counts, FeatureBins, ProfileSpec

SPEC = ProfileSpec(
    features=[FeatureBins("a", [0.0, 1.0]), FeatureBins("b", [0.5])], classes=3, confidence_edges=[0.25, 0.5, 0.75]
)


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    samples = draw(st.integers(0, 12))
    value = st.floats(width=32, allow_nan=True, allow_infinity=True)
    features = draw(st.lists(st.tuples(value, value), min_size=samples, max_size=samples))
    raw = draw(st.lists(st.tuples(*[st.floats(0.01, 1)] * 3), min_size=samples, max_size=samples))
    weights = np.array(raw, np.float64).reshape(samples, 3)
    return np.array(features, np.float32).reshape(samples, 2), weights / weights.sum(axis=1, keepdims=True)


@given(batches(), batches(), batches())
def test_counts_add_in_any_order_and_grouping(one: tuple, two: tuple, three: tuple) -> None:
    a, b, c = (profile.count(SPEC, *batch) for batch in (one, two, three))

    assert profile.add(a, b) == profile.add(b, a)
    assert profile.add(profile.add(a, b), c) == profile.add(a, profile.add(b, c))
    assert profile.add(a, profile.zero(SPEC)) == a


@given(batches(), st.integers(0, 12))
def test_counting_in_parts_is_counting_the_whole(batch: tuple[np.ndarray, np.ndarray], cut: int) -> None:
    features, probabilities = batch
    parts = (profile.count(SPEC, features[s], probabilities[s]) for s in (slice(cut), slice(cut, None)))

    assert profile.add(*parts) == profile.count(SPEC, features, probabilities)


@given(batches())
def test_whatever_is_counted_passes_the_check(batch: tuple[np.ndarray, np.ndarray]) -> None:
    counts = profile.count(SPEC, *batch)
    assert profile.check_counts(SPEC, counts) == counts


def test_bins_are_open_below_and_closed_above() -> None:
    values = np.array([[-5.0, 0.5], [0.0, 0.6], [0.5, np.nan], [1.0, 0.4], [7.0, np.inf]], np.float32)
    counts = profile.count(SPEC, values, np.full((5, 3), 1 / 3))

    assert counts.features == [[2, 2, 1], [2, 1]]
    assert counts.missing == [0, 2]
    assert counts.confidence == [0, 5, 0, 0]


def test_confidence_edges_fall_between_the_codes_of_an_int8_softmax() -> None:
    codes = np.arange(257) / 256
    edges = np.array(profile.confidence_edges())

    assert len(edges) == 19
    assert np.abs(codes[:, None] - edges[None, :]).min() > 1 / 600


def test_quantile_edges_of_few_values_are_distinct() -> None:
    assert profile.quantile_edges(np.array([1, 1, 1, 2, 2, 2]), bins=4) == [1.0, 1.5, 2.0]
    with pytest.raises(ProfileError):
        profile.quantile_edges(np.array([np.nan]))


def test_estimated_accuracy_is_the_mean_confidence() -> None:
    counts = profile.count(SPEC, np.zeros((2, 2)), np.array([[0.9, 0.1, 0], [0.5, 0.3, 0.2]]))
    assert profile.estimated_accuracy(counts) == pytest.approx(0.7)
    assert np.isnan(profile.estimated_accuracy(profile.zero(SPEC)))


GOOD = Counts(
    samples=2,
    features=[[1, 1, 0], [2, 0]],
    missing=[0, 0],
    predictions=[1, 1, 0],
    confidence=[0, 0, 1, 1],
    confidence_sum=10,
)


@pytest.mark.parametrize(
    "change",
    [
        {"samples": 3},
        {"features": [[1, 1], [2, 0]]},
        {"features": [[3, -1, 0], [2, 0]]},
        {"missing": [1, 0]},
        {"predictions": [1, 1]},
        {"predictions": [2, 1, 0]},
        {"confidence": [0, 0, 0, 1]},
        {"confidence_sum": 2_000_001},
        {"confidence_sum": -1},
    ],
)
def test_counts_that_no_device_could_have_counted_are_refused(change: dict) -> None:
    import msgspec

    profile.check_counts(SPEC, GOOD)
    with pytest.raises(ProfileError):
        profile.check_counts(SPEC, msgspec.structs.replace(GOOD, **change))


@pytest.mark.parametrize(
    "spec",
    [
        ProfileSpec(features=[FeatureBins("a", [])], classes=2, confidence_edges=[0.5]),
        ProfileSpec(features=[FeatureBins("a", [1.0, 1.0])], classes=2, confidence_edges=[0.5]),
        ProfileSpec(features=[FeatureBins("a", [float("inf")])], classes=2, confidence_edges=[0.5]),
        ProfileSpec(features=[FeatureBins("a", [0.0])], classes=1, confidence_edges=[0.5]),
        ProfileSpec(features=[FeatureBins("a", [0.0])], classes=40_000, confidence_edges=[0.5]),
    ],
)
def test_bins_that_cannot_be_counted_under_are_refused(spec: ProfileSpec) -> None:
    with pytest.raises(ProfileError):
        profile.check_spec(spec)


def test_the_largest_profile_still_fits_into_one_message() -> None:
    edges = [float(edge) for edge in range(limits.PROFILE_BINS - 1)]
    many = limits.PROFILE_COUNTERS // (limits.PROFILE_BINS + 1)
    features = [FeatureBins(f"f{index}", edges) for index in range(many)]
    classes = limits.PROFILE_COUNTERS - many * (limits.PROFILE_BINS + 1) - 2
    spec = profile.check_spec(ProfileSpec(features=features, classes=classes, confidence_edges=[0.5]))
    most = 2**32 - 1
    counts = Counts(
        samples=most,
        features=[[most] * limits.PROFILE_BINS] * many,
        missing=[most] * many,
        predictions=[most] * classes,
        confidence=[most] * 2,
        confidence_sum=most * profile.CONFIDENCE_UNIT,
    )
    assert len(codec.encode(counts)) < limits.MESSAGE_BYTES - 2 * 1024
    one_more = ProfileSpec(features=spec.features, classes=classes + 1, confidence_edges=[0.5])
    with pytest.raises(ProfileError, match="counters"):
        profile.check_spec(one_more)


def test_counts_of_other_bins_are_not_added() -> None:
    with pytest.raises(ProfileError):
        profile.add(GOOD, profile.zero(ProfileSpec(features=[], classes=3, confidence_edges=[0.5])))


@pytest.mark.parametrize("bad", [np.array([[0.5, np.nan, 0.5]]), np.array([[-0.1, 0.6, 0.5]]), np.array([[2.0, 0, 0]])])
def test_probabilities_that_are_none_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ProfileError):
        profile.count(SPEC, np.zeros((1, 2)), bad)


@given(st.lists(batches(), max_size=4))
def test_a_counter_counts_batches_as_the_sum_of_their_counts(several: list[tuple[np.ndarray, np.ndarray]]) -> None:
    counter = profile.Counter(SPEC)
    for _ in range(2):  # taking starts anew
        expected = profile.zero(SPEC)
        for features, probabilities in several:
            counter.add(features, probabilities)
            expected = profile.add(expected, profile.count(SPEC, features, probabilities))
        assert counter.take() == expected
    assert counter.take() == profile.zero(SPEC)
