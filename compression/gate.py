"""What may ship, and which of it: pure decisions over reports. Gates are a TOML file with a table `[gates]`."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from compression.errors import GateError, RecipeError
from compression.measure import Report
from coordinator.client import Gates, InvalidError, gates_from_fields, gates_from_toml, records

__all__ = ["LOCAL", "Gates", "choose", "from_fields", "load", "reasons", "stricter"]

LOCAL = "local"  # the machine that compressed, among hardware classes
_SLACK = 1e-9  # of a sum of floats


def load(path: Path) -> Gates:
    """Gates from a TOML file.

    Raises:
        RecipeError: unreadable, an unknown key, or a value outside its limits.
    """
    try:
        return gates_from_toml(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    except InvalidError as error:
        raise RecipeError(str(error)) from error


def from_fields(fields: Any, where: str) -> Gates:
    """Gates from plain values, as jobs carry them.

    Raises:
        RecipeError: see `load`.
    """
    try:
        return gates_from_fields(fields, where)
    except InvalidError as error:
        raise RecipeError(str(error)) from error


def stricter(one: Gates, other: Gates) -> Gates:
    """Gates that hold what both hold: a job may ask for more than its model does, and for less by nobody's word."""
    both: dict[str, Any] = {}
    for name in Gates.__struct_fields__:
        given = [value for value in (getattr(one, name), getattr(other, name)) if value is not None]
        if name == "p95_us":
            both[name] = {
                each: min(limits[each] for limits in given if each in limits) for each in {**given[0], **given[1]}
            }
        elif given:
            both[name] = max(given) if name.startswith(("min_", "require_")) else min(given)
        else:
            both[name] = None
    return Gates(**both)


def reasons(report: Report, gates: Gates, measured: Mapping[str, float] | None = None) -> list[str]:
    """Why a variant may not ship; empty where it may. A figure that is no number fails its gate.

    Args:
        report: of the variant.
        gates: of its model.
        measured: hardware class to p95 latency in microseconds, of this artifact on a device of that class.
    """
    found = [
        _most("loses", 100 * report.drop, _points(gates.max_drop), "points of validation accuracy"),
        _most("may lose", 100 * report.drop_high, _points(gates.max_drop_high), "points (95 % interval)"),
        _most("adds", 100 * report.calibration_change, _points(gates.max_calibration_change), "points of ECE"),
        _most("has", report.bytes, gates.max_bytes, "bytes"),
        _most("has", report.zstd_bytes, gates.max_zstd_bytes, "bytes on the way (zstd)"),
        _most("needs", report.arena_bytes, gates.max_arena_bytes, "bytes of activations"),
        _least(f"class {report.worst_class.name!r}", report.worst_class.accuracy, gates.min_worst_class),
        _least(f"device {report.worst_device.name!r}", report.worst_device.accuracy, gates.min_worst_device),
    ]
    latencies = {**(measured or {}), LOCAL: report.p95_us}  # a hardware class of that name is none
    for name, limit in gates.p95_us.items():
        if name in latencies:
            found.append(_most("takes", latencies[name], limit, f"us (p95) on {name}"))
        elif gates.require_measurement:
            found.append(f"was not measured on hardware class {name}; run: fieldfare compress bench BUNDLE --on DEVICE")
    return [reason for reason in found if reason]


def _points(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _most(verb: str, value: float, limit: float | None, unit: str) -> str:
    if limit is None or value <= limit + _SLACK:  # written so that NaN fails
        return ""
    shown, allowed = (f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}" for number in (value, limit))
    return f"{verb} {shown} {unit}, {allowed} are allowed"


def _least(what: str, value: float, limit: float | None) -> str:
    if limit is None or value >= limit - _SLACK:
        return ""
    return f"answers {what} rightly in {100 * value:.1f} %, {100 * limit:.1f} % are needed"


def overridden(overrides: Iterable[records.Override], variant: str, sha256: str, reasons: Iterable[str]) -> bool:
    """Whether a signed word that holds now lets a variant pass in spite of these reasons.

    Args:
        overrides: of the version.
        variant, sha256: its name, and the digest of its artifact.
        reasons: why it may not ship otherwise.
    """
    return any(
        each.in_force and (each.variant, each.artifact_sha256) == (variant, sha256) and not each.unnamed(reasons)
        for each in overrides
    )


def choose(
    reports: Mapping[str, Report],
    gates: Gates,
    measured: Mapping[str, Mapping[str, float]] | None = None,
    *,
    overridden: Collection[str] = (),
) -> str:
    """The variant with the fewest bytes on the way (Zstandard) among those that may ship; ties by name.

    Args:
        reports: by variant.
        gates: of the model.
        measured: by variant, as for `reasons`.
        overridden: variants that a signed override lets pass.

    Raises:
        GateError: none may ship.
    """
    found = {name: reasons(report, gates, (measured or {}).get(name)) for name, report in reports.items()}
    passed = [name for name, why in found.items() if not why or name in overridden]
    if not passed:
        why = "; ".join(f"{name} {reasons[0]}" for name, reasons in sorted(found.items()))
        raise GateError(f"no variant may ship: {why or 'there is none'}")
    return min(passed, key=lambda name: (reports[name].zstd_bytes, name))
