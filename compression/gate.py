"""What may ship, and which of it: pure decisions over reports. Gates are a TOML file with a table `[gates]`."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from compression.errors import GateError, RecipeError
from compression.measure import Report

LOCAL = "local"  # the machine that compressed, among hardware classes
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Size = Annotated[int, msgspec.Meta(gt=0)]
_SLACK = 1e-9  # of a sum of floats


class Gates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a variant must hold; None asks for nothing. Accuracies are from 0 to 1.

    Attributes:
        max_drop: validation accuracy lost against float.
        max_drop_high: the same for the upper end of the 95 % interval: what is not shown to be small is too large.
        max_calibration_change: by which the expected calibration error may grow.
        max_bytes, max_zstd_bytes, max_arena_bytes: raw, on the way, of activations.
        p95_us: hardware class to the longest latency on one thread; `local` is the machine that compressed.
        min_worst_class, min_worst_device: accuracy of the class and the device that are answered worst.
        require_measurement: whether a hardware class on which nobody measured fails; without it, it is let pass.
    """

    max_drop: _Share | None = 0.02
    max_drop_high: _Share | None = None
    max_calibration_change: _Share | None = None
    max_bytes: _Size | None = None
    max_zstd_bytes: _Size | None = None
    max_arena_bytes: _Size | None = None
    p95_us: dict[str, Annotated[float, msgspec.Meta(gt=0)]] = {}
    min_worst_class: _Share | None = None
    min_worst_device: _Share | None = None
    require_measurement: bool = False


def load(path: Path) -> Gates:
    """Gates from a TOML file.

    Raises:
        RecipeError: unreadable, an unknown key, or a value outside its limits.
    """
    try:
        fields = msgspec.toml.decode(path.read_text())
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    if not isinstance(fields, dict) or set(fields) != {"gates"}:
        raise RecipeError(f"{path}: gates are one table [gates], found {sorted(fields)[:5]}")
    return from_fields(fields["gates"], str(path))


def from_fields(fields: Any, where: str) -> Gates:
    """Gates from plain values, as jobs carry them.

    Raises:
        RecipeError: see `load`.
    """
    known = [field.name for field in msgspec.structs.fields(Gates)]
    for key in fields if isinstance(fields, dict) else ():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise RecipeError(f"{where}: unknown gate {key!r}; {hint}")
    try:
        return msgspec.convert(fields, Gates)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{where}: gates: {error}") from error


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
    latencies = {LOCAL: report.p95_us, **(measured or {})}
    for name, limit in gates.p95_us.items():
        if name in latencies:
            found.append(_most("takes", latencies[name], limit, f"us (p95) on {name}"))
        elif gates.require_measurement:
            found.append(f"was not measured on hardware class {name}; see: fieldfare compress bench")
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


def choose(
    reports: Mapping[str, Report], gates: Gates, measured: Mapping[str, Mapping[str, float]] | None = None
) -> str:
    """The variant with the fewest bytes on the way (Zstandard) among those that may ship; ties by name.

    Args:
        reports: by variant.
        gates: of the model.
        measured: by variant, as for `reasons`.

    Raises:
        GateError: none may ship.
    """
    found = {name: reasons(report, gates, (measured or {}).get(name)) for name, report in reports.items()}
    passed = [name for name, why in found.items() if not why]
    if not passed:
        why = "; ".join(f"{name} {reasons[0]}" for name, reasons in sorted(found.items()))
        raise GateError(f"no variant may ship: {why or 'there is none'}")
    return min(passed, key=lambda name: (reports[name].zstd_bytes, name))
