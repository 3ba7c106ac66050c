"""What a model's variants must hold to ship: from TOML, or plain values as the registry keeps them."""

import difflib
from typing import Annotated, Any

import msgspec

from coordinator.errors import InvalidError

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Size = Annotated[int, msgspec.Meta(gt=0)]
_Microseconds = Annotated[float, msgspec.Meta(gt=0)]


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
    p95_us: dict[str, _Microseconds] = {}
    min_worst_class: _Share | None = None
    min_worst_device: _Share | None = None
    require_measurement: bool = False


def from_toml(text: str, where: str) -> Gates:
    """Gates from TOML with one table `[gates]`; `where` names it in errors.

    Raises:
        InvalidError: no TOML, another table, an unknown key, or a value outside its limits.
    """
    try:
        fields = msgspec.toml.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidError(f"{where}: {error}") from error
    if not isinstance(fields, dict) or set(fields) != {"gates"}:
        raise InvalidError(f"{where}: gates are one table [gates], found {sorted(fields)[:5]}")
    return from_fields(fields["gates"], where)


def from_fields(fields: Any, where: str) -> Gates:
    """Gates from plain values, as jobs and the registry carry them; errors as in `from_toml`."""
    known = [field.name for field in msgspec.structs.fields(Gates)]
    for key in fields if isinstance(fields, dict) else ():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise InvalidError(f"{where}: unknown gate {str(key)[:80]!r}; {hint}")
    try:
        return msgspec.convert(fields, Gates)
    except msgspec.ValidationError as error:
        raise InvalidError(f"{where}: gates: {error}") from error
