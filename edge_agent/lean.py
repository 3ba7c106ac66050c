"""How the daemon holds little memory: the allocator's settings, and pages given back when work left them behind."""

import ctypes
import re
from collections.abc import Callable, Iterator
from pathlib import Path

_ARENA_MAX, _TRIM_THRESHOLD, _MMAP_THRESHOLD = -8, -1, -3  # malloc.h
_BORDER_BYTES = 64 * 1024
_DONTNEED = 4  # madvise(2)
_SETTLE_S = 10.0  # after a start or an update
_INFERENCES = 216_000  # six hours at 10 Hz


def start() -> None:
    """One pool of free memory instead of one a thread, and large pieces go back to the system at once.

    Call it before other threads exist. glibc keeps what it lent once in a large piece for later, so an update's bundle
    would stay in our memory for ever. Nothing happens with another libc.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_ARENA_MAX, 1)
        libc.mallopt(_TRIM_THRESHOLD, _BORDER_BYTES)
        libc.mallopt(_MMAP_THRESHOLD, _BORDER_BYTES)


def settle() -> int:
    """Give back what only start-up needed: free memory, and program text that the kernel mapped along the way.

    Text that is needed again comes back from the page cache. Only mappings that no relocation wrote to are given back.

    Returns:
        Bytes of text that were given back; 0 where the system cannot.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        return 0
    libc.malloc_trim(0)
    given = 0
    for address, size in clean_text(Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")):
        if libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _DONTNEED) == 0:
            given += size
    return given


def clean_text(smaps: str) -> Iterator[tuple[int, int]]:
    """Address and bytes of the mappings in a `/proc/PID/smaps` that hold program text just as it is in its file."""
    for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", smaps, flags=re.MULTILINE)[1:]:
        first, _, rest = mapping.partition("\n")
        bounds, flags, _offset, _device, _inode, *path = first.split(maxsplit=5)
        clean = re.search(r"^Private_Dirty: +0 kB$", rest, re.MULTILINE)
        if flags == "r-xp" and clean and path and path[0].startswith("/"):
            begin, end = (int(bound, 16) for bound in bounds.split("-"))
            yield begin, end - begin


class Settling:
    """When to `settle`: some seconds after a start or an update, and again after so many inferences."""

    def __init__(self, monotonic: Callable[[], float], settle: Callable[[], object] = settle) -> None:
        """Begin with a start that is just over."""
        self._monotonic, self._settle, self._inferences = monotonic, settle, 0
        self.soon()

    def soon(self) -> None:
        """A start or an update is over."""
        self._at = self._monotonic() + _SETTLE_S

    def tick(self, inferences: int) -> None:
        """Settle if it is time; `inferences` is how many were made so far."""
        if self._monotonic() >= self._at or inferences >= self._inferences + _INFERENCES:
            self._at, self._inferences = float("inf"), inferences
            self._settle()
