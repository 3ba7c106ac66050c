"""Samples that programs push to the local API: `POST /v2/sources/NAME` puts them in a queue and answers at once."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from edge_agent.errors import ApiError, UnavailableError
from edge_agent.sources import payload
from edge_agent.sources.waiting import Waiting

Samples = tuple[np.ndarray, np.ndarray | None]


class Pushes:
    """Queues by name, between the API's threads and the sources'."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[str, tuple[Waiting[Samples], payload.PayloadOptions]] = {}

    def offer(self, name: str, body: bytes) -> None:
        """Queue what a program pushed.

        Raises:
            ApiError: no such source.
            SampleError: other bytes than the source's options say.
            UnavailableError: the queue is full.
        """
        with self._lock:
            found = self._queues.get(name)
        if found is None:
            raise ApiError(404, f"no source {name[:64]!r} of kind http; [[sources]] in agent.toml says which there are")
        waiting, options = found
        x, y = payload.read(body, options)
        try:
            waiting.put((x, y), x.nbytes + (0 if y is None else y.nbytes))
        except queue.Full as error:
            raise UnavailableError(f"source {name}: too many pushes wait already; push more slowly") from error

    @contextmanager
    def opened(self, name: str, size: int, options: payload.PayloadOptions) -> Iterator[Waiting[Samples]]:
        """Take pushes under a name for as long as this is open."""
        waiting: Waiting[Samples] = Waiting(size)
        with self._lock:
            self._queues[name] = waiting, options
        try:
            yield waiting
        finally:
            with self._lock:
                self._queues.pop(name, None)
