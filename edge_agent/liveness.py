"""Whether every worker still makes progress, so that a stuck one starves the watchdog."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edge_agent.notify import Notifier

_LOG = logging.getLogger(__name__)
PATIENCE_S = 300.0


class Stopping(threading.Event):
    """Asks the workers to end, and watches them meanwhile.

    A worker that asks `is_set` or waits here shows that it lives: whatever takes long (a pull, a training child) looks
    here again and again anyhow. One that waits for work says so with `resting`, one that does a long step that cannot
    look says so with `patient`. A worker that neither looks nor said so for `patience_s` is stuck, and so is one whose
    thread died.
    """

    def __init__(self, *, patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._patience_s, self._clock = patience_s, clock
        self._due: dict[str, float] = {}  # by name of the thread

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the thread that is inside; leaving by an exception is dying."""
        name = threading.current_thread().name
        self._due[name] = self._clock() + self._patience_s
        yield
        del self._due[name]

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Nothing is expected of this thread while it is inside."""
        self._expect(float("inf"))
        try:
            yield
        finally:
            self._expect(0.0)

    @contextmanager
    def patient(self, seconds: float) -> Iterator[None]:
        """This thread does one step that may take so long."""
        self._expect(seconds)
        try:
            yield
        finally:
            self._expect(0.0)

    def is_set(self) -> bool:
        """Whether to end."""
        self._expect(0.0)
        return super().is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait to be asked to end, at most `timeout` seconds."""
        self._expect(float("inf") if timeout is None else timeout)
        ended = super().wait(timeout)
        self._expect(0.0)
        return ended

    def stuck(self) -> list[str]:
        """Names of the watched threads that should have looked here by now."""
        now = self._clock()
        return sorted(name for name, due in list(self._due.items()) if now > due)

    def _expect(self, seconds: float) -> None:
        name = threading.current_thread().name
        if name in self._due:
            self._due[name] = self._clock() + self._patience_s + seconds


class Vitals:
    """Tells the service manager how the agent is; a stuck worker ends the signs of life."""

    def __init__(self, stopping: Stopping, notifier: Notifier) -> None:
        self._stopping, self._notifier = stopping, notifier
        self._stuck: list[str] = []

    def ready(self) -> None:
        """The agent serves."""
        self._notifier.ready()

    def stopping(self) -> None:
        """The agent is about to end."""
        self._notifier.stopping()

    def show(self, status: str, now: float) -> None:
        """The main loop has come round: a line for people, and a sign of life unless somebody is stuck."""
        stuck = self._stopping.stuck()
        if stuck != self._stuck:
            self._stuck = stuck
            if stuck:
                _LOG.error("stuck: %s; a supervisor with a watchdog starts the agent anew", ", ".join(stuck))
        self._notifier.status(status)
        if not stuck:
            self._notifier.alive(now)
