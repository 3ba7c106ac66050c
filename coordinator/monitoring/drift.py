"""Which devices drifted, and how much: tests of counts against counts. Pure.

A device is compared with its own first samples under the same bundle: devices see different things all their lives
(label skew), and that is not drift. Correction for many tests goes over devices and features together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from contract import profile
from contract.profile import Counts, ProfileSpec
from coordinator.monitoring import statistics

PREDICTIONS, CONFIDENCE = "predictions", "confidence"


@dataclass(frozen=True)
class FeatureTest:
    """One feature tested. `statistic` is the PSI."""

    feature: str
    statistic: float
    p_value: float


@dataclass(frozen=True)
class History:
    """What one device counted under one bundle, at first and of late; the two do not overlap."""

    device: str
    baseline: Counts
    recent: Counts


@dataclass(frozen=True)
class Assessment:
    """Which of the tested devices drifted: device to the tests that say so, worst first."""

    tested: list[str]
    drifting: dict[str, list[FeatureTest]]


def rows(spec: ProfileSpec, counts: Counts) -> dict[str, list[int]]:
    """Bin counts by feature, then `predictions` and `confidence`; `NAME:missing` where a feature can be absent."""
    named = {feature.name: row for feature, row in zip(spec.features, counts.features, strict=True)}
    missing = {
        f"{feature.name}:missing": [counts.samples - absent, absent]
        for feature, absent in zip(spec.features, counts.missing, strict=True)
    }
    return {**named, PREDICTIONS: counts.predictions, CONFIDENCE: counts.confidence, **missing}


def compare(spec: ProfileSpec, before: Counts, after: Counts) -> list[FeatureTest]:
    """Test every feature, the predicted classes, the confidence, and how often features were missing."""
    left, right = rows(spec, before), rows(spec, after)
    return [_test(name, left[name], right[name]) for name in left if not _never_missing(name, left, right)]


def _never_missing(name: str, *sides: Mapping[str, Sequence[int]]) -> bool:
    return name.endswith(":missing") and not any(side[name][1] for side in sides)


def _test(name: str, before: Sequence[int], after: Sequence[int]) -> FeatureTest:
    statistic = statistics.psi(before, after)
    if name == PREDICTIONS:
        return FeatureTest(name, statistic, statistics.chi2_p_value(before, after))
    sizes = {"reference_samples": sum(before), "current_samples": sum(after)}
    return FeatureTest(name, statistic, statistics.psi_p_value(statistic, bins=len(before), **sizes))


def assess(spec: ProfileSpec, histories: Sequence[History], *, alpha: float, materiality: float) -> Assessment:
    """Test each device against its own baseline.

    Args:
        spec: bins of all the counts.
        histories: devices with enough samples on both sides.
        alpha: false discovery rate over devices x features.
        materiality: smallest PSI that matters, whatever its p-value.
    """
    tests = [(each.device, test) for each in histories for test in compare(spec, each.baseline, each.recent)]
    rejected = statistics.benjamini_hochberg([test.p_value for _, test in tests], alpha)
    drifting: dict[str, list[FeatureTest]] = {}
    for (device, test), significant in zip(tests, rejected, strict=True):
        if significant and test.statistic >= materiality:
            drifting.setdefault(device, []).append(test)
    ordered = {device: sorted(found, key=lambda test: -test.statistic) for device, found in sorted(drifting.items())}
    return Assessment(sorted(each.device for each in histories), ordered)


def pool(spec: ProfileSpec, counts: Sequence[Counts]) -> Counts:
    """Sum of counts."""
    total = profile.zero(spec)
    for each in counts:
        total = profile.add(total, each)
    return total


def worst(spec: ProfileSpec, histories: Sequence[History]) -> FeatureTest:
    """The feature with the largest PSI, of the devices' pooled recent counts against their pooled baselines."""
    before = pool(spec, [each.baseline for each in histories])
    after = pool(spec, [each.recent for each in histories])
    return max(compare(spec, before, after), key=lambda test: test.statistic)
