"""Threads that do something a few times a second until they are told to stop."""

import logging
import threading
import time
from collections.abc import Callable

TICK_S = 0.2

logger = logging.getLogger(__name__)


class Loop:
    """Calls `tick(now)` again and again; what it raises is logged, once while it stays the same, and tried again."""

    def __init__(self, name: str, tick: Callable[[float], object], *, every_s: float = TICK_S) -> None:
        self._name = name
        self._tick = tick
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """End after the tick that is going on."""
        self._stop.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        said = ""
        while not self._stop.is_set():
            try:
                self._tick(time.time())
                said = ""
            except Exception as error:
                if repr(error) != said:
                    logger.exception("the %s loop failed and goes on", self._name)
                said = repr(error)
            self._stop.wait(self._every_s)
