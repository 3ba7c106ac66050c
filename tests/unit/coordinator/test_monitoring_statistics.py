"""Acceptance numbers come from the cited sources or from an analytic derivation beside them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, norm

from coordinator.monitoring import statistics

ROWS = (
    st.integers(2, 12)
    .flatmap(lambda bins: st.tuples(*[st.lists(st.integers(0, 5_000), min_size=bins, max_size=bins)] * 2))
    .filter(lambda pair: sum(pair[0]) and sum(pair[1]))
)

DECILES = norm.ppf(np.linspace(0.1, 0.9, 9))


def normal_counts(mean: float, deviation: float, samples: int = 10**9) -> list[int]:
    edges = np.concatenate([[-np.inf], DECILES, [np.inf]])
    return [round(share * samples) for share in np.diff(norm.cdf(edges, mean, deviation))]


@pytest.mark.parametrize(
    ("mean", "deviation", "expected"),
    [(0.5, 1.0, 0.237749), (0.0, 1.5, 0.193543), (0.0, 1.0, 0.0)],
)
def test_psi_of_shifted_normals_on_deciles_is_the_analytic_value(mean, deviation, expected):
    assert statistics.psi(normal_counts(0, 1), normal_counts(mean, deviation)) == pytest.approx(expected, abs=1e-5)


def test_psi_without_smoothing_of_a_worked_example():
    even, other = [100] * 10, [80, 90, 100, 100, 100, 100, 100, 100, 110, 120]
    assert statistics.psi(even, other, smoothing=0.0) == pytest.approx(0.010116, abs=1e-6)


def test_psi_sees_sensors_stuck_outside_the_reference_range():
    stuck = [50] * 9 + [50 + 500]
    assert statistics.psi([100] * 10, stuck) > 0.6


@given(ROWS)
def test_psi_is_never_negative_and_symmetric(rows):
    left, right = rows
    forward, backward = statistics.psi(left, right), statistics.psi(right, left)
    assert forward >= 0
    assert forward == pytest.approx(backward, rel=1e-9, abs=1e-12)


@given(ROWS, st.randoms(use_true_random=False))
def test_psi_does_not_depend_on_the_order_of_bins(rows, random):
    order = list(range(len(rows[0])))
    random.shuffle(order)
    shuffled = [[row[i] for i in order] for row in rows]
    assert statistics.psi(*shuffled) == pytest.approx(statistics.psi(*rows), rel=1e-9, abs=1e-12)


def test_psi_of_nothing_is_not_a_number_and_no_evidence():
    statistic = statistics.psi([0, 0], [1, 2])
    assert math.isnan(statistic)
    assert statistics.psi_p_value(statistic, reference_samples=0, current_samples=3, bins=2) == 1.0


@pytest.mark.parametrize(("n", "m", "bins", "critical"), [(500, 500, 10, 0.0677), (10_000, 1_000, 20, 0.0332)])
def test_psi_null_distribution_has_the_published_critical_values(n, m, bins, critical):
    assert statistics.psi_p_value(critical, reference_samples=n, current_samples=m, bins=bins) == pytest.approx(
        0.05, abs=0.002
    )


def test_psi_p_values_without_drift_are_rarely_small():
    random = np.random.default_rng(3)
    shares = random.dirichlet(np.full(10, 5.0))
    p_values = []
    for _ in range(400):
        before, after = random.multinomial(600, shares), random.multinomial(400, shares)
        statistic = statistics.psi(before.tolist(), after.tolist())
        p_values.append(statistics.psi_p_value(statistic, reference_samples=600, current_samples=400, bins=10))
    assert 0.02 < np.mean(np.asarray(p_values) < 0.05) < 0.09


def test_chi_squared_of_a_worked_example():
    assert statistics.chi2_p_value([10, 10, 20], [20, 20, 20]) == pytest.approx(0.249352, abs=1e-6)


def test_chi_squared_merges_rare_classes_and_ignores_absent_ones():
    assert statistics.chi2_p_value([50, 50, 1, 0], [50, 50, 0, 0]) == pytest.approx(
        chi2_contingency([[50, 51], [50, 50]], correction=False).pvalue
    )
    assert statistics.chi2_p_value([5, 0], [7, 0]) == 1.0
    assert statistics.chi2_p_value([0, 0], [7, 1]) == 1.0


def test_benjamini_hochberg_rejects_the_four_of_the_published_list():
    published = [
        0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344,
        0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0,
    ]  # fmt: skip
    assert sum(statistics.benjamini_hochberg(published, 0.05)) == 4
    assert statistics.benjamini_hochberg([], 0.05) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0.001, 0.5))
def test_benjamini_hochberg_lies_between_bonferroni_and_no_correction(p_values, alpha):
    rejected = statistics.benjamini_hochberg(p_values, alpha)
    for p, reject in zip(p_values, rejected, strict=True):
        assert reject or p * len(p_values) > alpha * (1 - 1e-9)
        assert not reject or p <= alpha * (1 + 1e-9)


def test_opposite_shifts_cancel_in_the_pool_but_not_in_heterogeneity():
    left, right, middle = [300, 100, 100], [100, 100, 300], [200, 100, 200]
    pooled = [a + b for a, b in zip(left, right, strict=True)]
    assert statistics.psi(middle, pooled) < 0.001
    assert statistics.heterogeneity([left, right]) > 0.05


@given(st.lists(st.integers(0, 100), min_size=3, max_size=3).filter(any), st.integers(2, 5))
def test_devices_that_are_alike_have_no_heterogeneity(row, devices):
    assert statistics.heterogeneity([row] * devices) == pytest.approx(0, abs=1e-9)


def test_heterogeneity_of_disjoint_devices_is_the_entropy_of_their_shares():
    assert statistics.heterogeneity([[10, 0], [0, 10]]) == pytest.approx(math.log(2))
    assert statistics.heterogeneity([[10, 0], [0, 0]]) == 0.0


@given(st.integers(0, 50), st.integers(0, 50))
def test_wilson_interval_holds_the_share(successes, more):
    trials = successes + more
    low, high = statistics.wilson(successes, trials)
    assert 0 <= low <= high <= 1
    if trials:
        assert low - 1e-12 <= successes / trials <= high + 1e-12
