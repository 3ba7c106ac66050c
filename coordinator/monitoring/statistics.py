"""Drift statistics on integer bin counts. Pure: counts in, numbers out.

Population stability index (PSI): bins are fixed by the reference, with open ends, so that nothing falls outside. Both
sides are smoothed. PSI is symmetric, and is Jeffreys' divergence (Jeffreys 1946).
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

SMOOTHING = 0.5  # pseudo-counts in each bin (Jeffreys' prior)
_SMALLEST_EXPECTED = 5.0  # expected counts below this make the chi-squared approximation poor (Cochran 1954)

Row = Sequence[int]


def psi(reference: Row, current: Row, *, smoothing: float = SMOOTHING) -> float:
    """Population stability index of two rows of bin counts; 0 is equal. Above 0.25 is commonly called a shift.

    Args:
        reference, current: counts of the same bins.
        smoothing: pseudo-counts added to each bin of both; without it an empty bin gives infinity.

    Returns:
        Nats; NaN where one side has no samples.
    """
    p, q = (np.asarray(row, np.float64) for row in (reference, current))
    if not p.sum() or not q.sum():
        return math.nan
    p, q = ((row + smoothing) / (row.sum() + smoothing * len(row)) for row in (p, q))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p == q, 0.0, (q - p) * np.log(q / p))
    return float(terms.sum())


def psi_p_value(statistic: float, *, reference_samples: int, current_samples: int, bins: int) -> float:
    """How likely a PSI at least this large is without drift: PSI ~ (1/n + 1/m) chi2 with bins - 1 degrees of freedom.

    Source: Yurdakul 2018, https://scholarworks.wmich.edu/dissertations/3208

    Returns:
        1 where nothing can be said: no samples, or one bin.
    """
    if not reference_samples or not current_samples or bins < 2 or math.isnan(statistic):
        return 1.0
    scale = 1 / reference_samples + 1 / current_samples
    return float(stats.chi2.sf(statistic / scale, bins - 1))


def chi2_p_value(reference: Row, current: Row) -> float:
    """Pearson's test that two rows of class counts have one distribution; rare classes are merged.

    Classes are merged, rarest first, until each expected count is at least 5.

    Returns:
        1 where fewer than two classes are left.
    """
    table = np.asarray([reference, current], np.float64)
    table = table[:, np.argsort(table.sum(axis=0), kind="stable")]
    table = table[:, table.sum(axis=0) > 0]
    if not table.sum(axis=1).all():
        return 1.0
    smallest_share = table.sum(axis=1).min() / table.sum()
    while table.shape[1] > 1 and table[:, 0].sum() * smallest_share < _SMALLEST_EXPECTED:
        merged = table[:, :1] + table[:, 1:2]
        table = np.hstack([merged, table[:, 2:]])
        table = table[:, np.argsort(table.sum(axis=0), kind="stable")]
    if table.shape[1] < 2:
        return 1.0
    return float(stats.chi2_contingency(table, correction=False).pvalue)


def benjamini_hochberg(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which hypotheses to reject so that at most a share `alpha` of the rejected is expected to be true.

    Source: Benjamini & Hochberg 1995. Valid for independent and for positively dependent tests.
    """
    if not p_values:
        return []
    adjusted = stats.false_discovery_control(np.asarray(p_values, np.float64), method="bh")
    return [bool(value <= alpha) for value in adjusted]


def heterogeneity(rows: Sequence[Row]) -> float:
    """How differently devices are distributed: generalised Jensen-Shannon divergence, weighted by samples (Lin 1991).

    High while the pooled PSI is low means that devices shifted in opposite directions.

    Returns:
        Nats, 0 for equal distributions and for fewer than two devices with samples.
    """
    counts = np.asarray([row for row in rows if sum(row)], np.float64)
    if len(counts) < 2:
        return 0.0
    weights = counts.sum(axis=1) / counts.sum()
    shares = counts / counts.sum(axis=1, keepdims=True)
    return max(
        0.0, _entropy(weights @ shares) - float(sum(w * _entropy(p) for w, p in zip(weights, shares, strict=True)))
    )


def _entropy(shares: np.ndarray) -> float:
    present = shares[shares > 0]
    return float(-(present * np.log(present)).sum())


def wilson(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a share (Wilson 1927); (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    share = successes / trials
    centre = share + z * z / (2 * trials)
    margin = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale)
