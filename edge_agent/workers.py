"""The agent's workers: threads that do their part again and again until the agent ends, whatever they meet."""

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable

from edge_agent.errors import CorruptStateError, HeldError, UnavailableError
from edge_agent.liveness import Stopping
from edge_agent.state import is_corruption

_LOG = logging.getLogger(__name__)
BACKOFF_S = (0.5, 10.0)

Work = Callable[[threading.Event], None]


class Workers:
    """Threads and what becomes of their errors.

    Attributes:
        damage: how the disk changed the agent's memory while it was open; only the next start can mend that.
    """

    def __init__(self, stopping: Stopping, stop: Callable[[], None]) -> None:
        """Prepare; `stop` asks the agent to end, which sets `stopping`."""
        self._stopping, self._stop = stopping, stop
        self._threads: list[threading.Thread] = []
        self.damage: Exception | None = None

    def add(self, name: str, work: Work, wake: threading.Event) -> None:
        """Have a thread call `work(wake)` once the workers start."""
        self._threads.append(threading.Thread(target=self.work, args=(work, wake), name=name))

    def start(self, others: Iterable[threading.Thread] = ()) -> None:
        """Start all that were added, and others that end by themselves when the agent does."""
        self._threads += others
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until all have ended."""
        for thread in self._threads:
            thread.join()

    def work(self, work: Work, wake: threading.Event) -> None:
        """Call `work` until the agent ends; whatever it raises, it is tried again, later and later."""
        delay = BACKOFF_S[0]
        with self._stopping.watched():
            while not self._stopping.is_set():
                try:
                    work(wake)
                    delay = BACKOFF_S[0]
                    continue
                except UnavailableError as error:
                    level = logging.DEBUG if isinstance(error, HeldError) else logging.INFO  # the gate says it once
                    _LOG.log(level, "%s; again in %.0f s", error, delay)
                except Exception as error:  # noqa: BLE001  # one failing part must not silence the others
                    self.note(error)
                    _LOG.exception("failed unexpectedly; again in %.0f s", delay)
                self._stopping.wait(delay)
                delay = min(2 * delay, BACKOFF_S[1])

    def rest(self, wake: threading.Event) -> None:
        """Wait for work."""
        with self._stopping.resting():
            wake.wait()
        wake.clear()

    def note(self, error: Exception) -> None:
        """End the agent where the disk changed its memory: the next start puts the file aside."""
        if isinstance(error, CorruptStateError) or (isinstance(error, sqlite3.Error) and is_corruption(error)):
            self.damage = error
            self._stop()
