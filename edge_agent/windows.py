"""Maintenance windows: local time on this device's wall, such as `22:30-04:00`; they may pass midnight. Pure."""

import re
from collections.abc import Sequence

DAY_S = 86_400
_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")


def window(text: str) -> tuple[int, int]:
    """A maintenance window as seconds after midnight: begin, and the end that is no part of it.

    Raises:
        ValueError: not `HH:MM-HH:MM`, or without a minute in it.
    """
    found = _WINDOW.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:40]!r} is no window like 02:00-05:00")
    hours = [int(part) for part in found.groups()]
    begin, end = (hours[0] * 60 + hours[1]) * 60, (hours[2] * 60 + hours[3]) * 60
    if end > DAY_S:
        raise ValueError(f"{text[:40]!r} ends after 24:00")
    if begin == end % DAY_S and end != DAY_S:
        raise ValueError(f"{text[:40]!r} has no minute in it; for any time leave `maintenance` empty")
    return begin, end


def until_open_s(windows: Sequence[str], local_s: float) -> float:
    """Seconds until one of the windows is open; 0 where one is, or where there is none.

    Args:
        windows: each as `window` takes it.
        local_s: seconds after local midnight.
    """
    waits = []
    for begin, end in map(window, windows):
        inside = begin <= local_s < end if begin < end else local_s >= begin or local_s < end
        waits.append(0.0 if inside else (begin - local_s) % DAY_S)
    return min(waits, default=0.0)
