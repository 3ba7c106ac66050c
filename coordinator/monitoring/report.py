"""The drift report and an alert's details, as plain data. Pure.

Nothing is said of fewer devices than the smallest cohort.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from contract.profile import Counts, ProfileSpec, Reference, estimated_accuracy
from coordinator.config import Drift
from coordinator.monitoring import drift, statistics
from coordinator.monitoring.drift import Assessment, History


def make(
    head: Mapping[str, Any],
    reference: Reference,
    latest: Mapping[str, Counts],
    assessment: Assessment,
    settings: Drift,
    *,
    smallest: int,
) -> dict[str, Any]:
    """The report.

    Args:
        head: what it is about, and `counted`, all samples so far; copied into the report.
        reference: profile of the bundle.
        latest: device to its latest counts.
        assessment: devices against their own baselines.
        settings: thresholds.
        smallest: fewest devices that may be reported on.

    Returns:
        `suppressed` with the reason alone, or `devices`, `samples`, `features` (pooled against the reference, with
        PSI, p-value, whether it drifted, heterogeneity of the devices), `estimated_accuracy` and `drifting`.
    """
    if len(latest) < smallest:
        reason = f"{len(latest)} devices sent profiles; fewer than {smallest} are not reported on"
        return {**head, "suppressed": reason}
    pooled = drift.pool(reference.spec, list(latest.values()))
    return {
        **head,
        "suppressed": "",
        "devices": len(latest),
        "samples": pooled.samples,
        "features": _features(reference, latest, pooled, settings),
        "estimated_accuracy": {
            "reference": estimated_accuracy(reference.counts) if reference.counts.samples else None,
            "recent": estimated_accuracy(pooled) if pooled.samples else None,
        },
        "drifting": _drifting(assessment, smallest),
    }


def _features(
    reference: Reference, latest: Mapping[str, Counts], pooled: Counts, settings: Drift
) -> list[dict[str, Any]]:
    tests = drift.compare(reference.spec, reference.counts, pooled)
    rejected = statistics.benjamini_hochberg([test.p_value for test in tests], settings.alpha)
    by_device = [drift.rows(reference.spec, counts) for counts in latest.values()]
    return [
        {
            "feature": test.feature,
            "psi": test.statistic,
            "p_value": test.p_value,
            "drifted": significant and test.statistic >= settings.materiality,
            "heterogeneity": statistics.heterogeneity([rows[test.feature] for rows in by_device]),
        }
        for test, significant in zip(tests, rejected, strict=True)
    ]


def _drifting(assessment: Assessment, smallest: int) -> dict[str, Any]:
    """Devices against their own baselines: names only of enough of them, and a share only among enough."""
    tested, found = len(assessment.tested), assessment.drifting
    if tested < smallest:
        return {"tested": tested, "suppressed": f"fewer than {smallest} devices have enough samples"}
    if 0 < len(found) < smallest:
        return {"tested": tested, "suppressed": f"fewer than {smallest} devices drift"}
    low, high = statistics.wilson(len(found), tested)
    return {
        "tested": tested,
        "suppressed": "",
        "devices": [
            {"device": device, "feature": tests[0].feature, "psi": tests[0].statistic, "p_value": tests[0].p_value}
            for device, tests in found.items()
        ],
        "share": len(found) / tested,
        "interval": [low, high],
    }


def alert_details(spec: ProfileSpec, histories: Sequence[History]) -> dict[str, Any]:
    """Every feature of the cohort, pooled recent against pooled baseline, and what confidence says of accuracy."""
    before = drift.pool(spec, [each.baseline for each in histories])
    after = drift.pool(spec, [each.recent for each in histories])
    left, right = estimated_accuracy(before), estimated_accuracy(after)
    return {
        "features": [
            {"feature": test.feature, "psi": test.statistic, "p_value": test.p_value}
            for test in drift.compare(spec, before, after)
        ],
        "samples": {"baseline": before.samples, "recent": after.samples},
        "estimated_accuracy": {"baseline": left, "recent": right},
    }
