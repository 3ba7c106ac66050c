import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from contract import profile
from contract.profile import FeatureBins, ProfileSpec
from coordinator.rounds.reference import apportion, merge

SPEC = ProfileSpec(
    features=[FeatureBins("f", [0.0, 1.0]), FeatureBins("g", [0.5])], classes=3, confidence_edges=[0.5, 0.8]
)


def counts(samples: int, seed: int, mean: float = 0.0):
    random = np.random.default_rng(seed)
    features = random.normal(mean, 1, (samples, 2))
    features[random.random((samples, 2)) < 0.1] = np.nan
    return profile.count(SPEC, features, random.dirichlet(np.ones(3), samples))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20).filter(any), st.data())
def test_apportioned_counts_add_up_and_stay_within_one_of_their_share(row, data):
    total = data.draw(st.integers(0, sum(row)))
    scaled = apportion(row, total)
    assert sum(scaled) == total
    assert all(abs(got - was * total / sum(row)) < 1 for got, was in zip(scaled, row, strict=True))
    assert all(0 <= got <= was for got, was in zip(scaled, row, strict=True))


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 100))
def test_a_merged_reference_is_one_that_a_device_could_have_counted(windows, evaluated, seed):
    merged = merge(SPEC, counts(windows, seed), counts(evaluated, seed + 1))
    profile.check_counts(SPEC, merged.counts)
    assert merged.counts.samples == (min(windows, evaluated) or evaluated)


def test_features_come_from_the_windows_and_confidence_from_the_evaluation():
    windows, evaluated = counts(200, 1, mean=5.0), counts(200, 2, mean=-5.0)
    merged = merge(SPEC, windows, evaluated).counts
    assert merged.features == windows.features
    assert (merged.predictions, merged.confidence) == (evaluated.predictions, evaluated.confidence)
    assert merged.confidence_sum == evaluated.confidence_sum
