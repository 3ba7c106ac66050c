"""What a script may want to know as it happens: `edge-agent run --json` prints each event as one line of JSON."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TextIO

import msgspec


class Tell(Protocol):
    """Takes an event by name, with its fields."""

    def __call__(self, event: str, /, **fields: object) -> None:
        """Say that this has happened."""


def silent(_event: str, /, **_fields: object) -> None:
    """Tell nobody."""


def everybody(*listeners: Tell) -> Tell:
    """Tells several."""

    def tell(event: str, /, **fields: object) -> None:
        for listener in listeners:
            listener(event, **fields)

    return tell


class Lines:
    """Tells a stream, one JSON object a line: `event`, `at` (seconds since the epoch), then the event's own fields."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream, self._clock = stream, clock
        self._lock = threading.Lock()

    def __call__(self, event: str, /, **fields: object) -> None:
        """Write one line, whole, at once."""
        line = msgspec.json.encode({"event": event, "at": round(self._clock(), 3), **fields}).decode()
        with self._lock, suppress(OSError):  # the reader went away; the agent serves on
            self._stream.write(line + "\n")
            self._stream.flush()
