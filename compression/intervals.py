"""Confidence intervals of paired answers: two artifacts on the same samples."""

import math
from typing import NamedTuple

import numpy as np

Z_95 = 1.959963984540054


class Drop(NamedTuple):
    """Accuracy lost, from -1 to 1, and its 95 % interval."""

    value: float
    low: float
    high: float


def drop(base_right: np.ndarray, right: np.ndarray, z: float = Z_95) -> Drop:
    """Accuracy of the base minus accuracy of another, on the same samples.

    The interval is the adjusted Wald interval for paired proportions (Bonett & Price 2012, J. Educ. Behav. Stat. 37(4),
    eq. 2): one sample is added to each kind of disagreement, so that it keeps its coverage for few of them. It is not
    cut to the point: with few samples it is wide although both answer alike.

    Args:
        base_right, right: (n,) whether each sample was answered rightly.
        z: quantile of the normal distribution, 1.96 for 95 %.

    Raises:
        ValueError: no samples, or two lengths.
    """
    n = len(right)
    if not n or len(base_right) != n:
        raise ValueError(f"a paired interval needs the same samples twice, got {len(base_right)} and {n}")
    lost = int((base_right & ~right).sum())
    won = int((~base_right & right).sum())
    p_lost, p_won = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    half = z * math.sqrt(max(0.0, p_lost + p_won - (p_lost - p_won) ** 2) / (n + 2))
    centre = p_lost - p_won
    return Drop((lost - won) / n, max(-1.0, centre - half), min(1.0, centre + half))
