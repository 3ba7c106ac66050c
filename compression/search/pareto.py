"""Pareto fronts, exact and pure: a point is on the front where no other is as good in all and better in one."""

import math
from collections.abc import Sequence

LATENCY_STEP = 1.2  # latencies closer than this factor are the same: repeated measurements differ as much


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether `a` is nowhere larger than `b`, and smaller somewhere. NaN never dominates and is never as good."""
    return all(x <= y or _worse(y, x) for x, y in zip(a, b, strict=True)) and any(
        x < y or _worse(y, x) for x, y in zip(a, b, strict=True)
    )


def _worse(y: float, x: float) -> bool:
    return math.isnan(y) and not math.isnan(x)


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that none dominates, ascending; of equal points the first alone.

    Args:
        points: less is better in every coordinate; all of one length.
    """
    kept: list[int] = []
    for index, point in enumerate(points):
        if any(math.isnan(value) for value in point):
            continue
        if any(dominates(other, point) for other in points) or tuple(point) in {tuple(points[k]) for k in kept}:
            continue
        kept.append(index)
    return kept


def ranks(points: Sequence[Sequence[float]]) -> list[int]:
    """Rank of each point: 0 on the front, 1 on the front of what is left without that, and so on.

    Points with NaN come last, together (non-dominated sorting, Deb et al. 2002, section III.A).
    """
    rank = [0] * len(points)
    left = [index for index, point in enumerate(points) if not any(math.isnan(value) for value in point)]
    level = 0
    while left:
        layer = [i for i in left if not any(dominates(points[j], points[i]) for j in left)]
        for index in layer:
            rank[index] = level
        left = [index for index in left if index not in set(layer)]
        level += 1
    for index, point in enumerate(points):
        if any(math.isnan(value) for value in point):
            rank[index] = level
    return rank


def latency_level(microseconds: float) -> float:
    """A latency on a scale on which differences by noise vanish."""
    return round(math.log(microseconds, LATENCY_STEP)) if microseconds > 0 else 0.0
