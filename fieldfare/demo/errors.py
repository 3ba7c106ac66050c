"""The one way in which the demonstration fails."""

from pathlib import Path


class StationFailedError(Exception):
    """A station of the loop did not do what it must; the message is for a person.

    Attributes:
        log: file that says more, if there is one.
    """

    def __init__(self, message: str, *, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log
