"""Samples that wait for their turn: a queue bounded by entries and by bytes, beside a source's options."""

import queue
import threading
from typing import Generic, TypeVar

T = TypeVar("T")
WAITING_BYTES = 16 * 1024 * 1024  # of one source; a single entry may be larger


class Waiting(Generic[T]):
    """First in, first out; nobody who puts ever waits."""

    def __init__(self, entries: int) -> None:
        """Room for so many entries."""
        self.entries = entries
        self._queue: queue.SimpleQueue[tuple[T, int]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._count = self._bytes = 0

    def put(self, entry: T, size: int) -> None:
        """Add an entry of `size` bytes.

        Raises:
            queue.Full: so many entries, or bytes, wait already.
        """
        with self._lock:
            if self._count >= self.entries or (self._count and self._bytes + size > WAITING_BYTES):
                raise queue.Full
            self._count, self._bytes = self._count + 1, self._bytes + size
            self._queue.put((entry, size))

    def get(self, timeout: float | None = None) -> T:
        """Take the oldest entry.

        Raises:
            queue.Empty: none came in time.
        """
        entry, size = self._queue.get(timeout=timeout)
        with self._lock:
            self._count, self._bytes = self._count - 1, self._bytes - size
        return entry
