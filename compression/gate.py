"""What may ship, and which of it: pure decisions over measured reports."""

from collections.abc import Mapping

import msgspec

from compression.errors import GateError


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one variant.

    Attributes:
        accuracy: on the test samples, for people; the gate does not look at it.
        validation_accuracy: on the validation samples.
        drop: validation accuracy lost against the float variant.
        bytes, gzip_bytes, zstd_bytes: raw, and as it travels.
        p50_us, p95_us: of one inference on one thread, on the machine that compressed.
        temperature: that its bundle divides logits by; fitted to this artifact unless devices counted under another.
    """

    accuracy: float
    validation_accuracy: float
    drop: float
    bytes: int
    gzip_bytes: int
    zstd_bytes: int
    p50_us: float
    p95_us: float
    temperature: float


def reasons(report: Report, *, max_drop: float) -> list[str]:
    """Why a variant may not ship; empty where it may.

    Args:
        max_drop: accuracy, from 0 to 1, that it may lose against the float variant.
    """
    if not report.drop <= max_drop + 1e-9:  # written so that NaN fails
        return [f"loses {100 * report.drop:.1f} points of validation accuracy, {100 * max_drop:.1f} are allowed"]
    return []


def choose(reports: Mapping[str, Report], *, max_drop: float) -> str:
    """The variant with the fewest bytes on the way (Zstandard) among those that may ship; ties by name.

    Raises:
        GateError: none may ship.
    """
    passed = {name: report for name, report in reports.items() if not reasons(report, max_drop=max_drop)}
    if not passed:
        why = "; ".join(f"{name} {reasons(report, max_drop=max_drop)[0]}" for name, report in sorted(reports.items()))
        raise GateError(f"no variant may ship: {why or 'there is none'}")
    return min(passed, key=lambda name: (passed[name].zstd_bytes, name))
