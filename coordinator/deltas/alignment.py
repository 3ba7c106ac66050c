"""What resembles each other in two artifacts whose layout differs, found by bsdiff's suffix sorting.

Colin Percival, Naive differences of executable code, 2003. Only the search is used: the patch has this project's own
format, so a device needs no bsdiff to apply it.
"""

from collections.abc import Iterator

from bsdiff4 import core

from contract.delta import Span

_BYTES = 8 * 1024 * 1024  # of either side; the search takes 17 bytes of memory for each byte of the base
_SHORTEST = 32  # bytes; what resembles each other for less costs more in the header than it saves


def align(base: bytes, target: bytes) -> Iterator[Span]:
    """Spans that one after another are the target: offset, bytes, offset in the base (-1 where nothing resembles).

    Artifacts of more than 8 MiB are one span that resembles nothing.
    """
    if max(len(base), len(target)) > _BYTES:
        yield 0, len(target), -1
        return
    control, _, _ = core.diff(base, target)
    at = position = 0
    for alike, new, moved in _numbers(control):
        if alike:
            yield position, alike, at if alike >= _SHORTEST else -1
        if new:
            yield position + alike, new, -1
        position += alike + new
        at += alike + moved


def _numbers(control: bytes) -> list[tuple[int, int, int]]:
    """Triples of bsdiff: bytes alike, new bytes, and how far to move in the base."""
    numbers = [core.decode_int64(control[at : at + 8]) for at in range(0, len(control), 8)]
    return list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
