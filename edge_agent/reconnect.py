"""When to connect again, in which protocol, and when a connection is dead. Pure: time and randomness come in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Protocol = Literal["3.1.1", "5"]
_SLOWEST_BYTES_PER_S = 2000.0  # of a link that is still worth its connection: 16 kbit/s


@dataclass(frozen=True)
class Backoff:
    """Exponential back-off with full jitter, lest a fleet that was cut off at once comes back at once.

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    Attributes:
        first_s: the longest pause after the first failure; it doubles with each further one.
        longest_s: and no pause is longer than this.
    """

    first_s: float = 4.0
    longest_s: float = 120.0

    def pause(self, failures: int, random: Callable[[], float]) -> float:
        """Seconds to wait after so many failures in a row (at least 1); `random` gives numbers from 0 to 1."""
        doublings = min(max(failures, 1) - 1, 32)
        return random() * min(self.first_s * 2.0**doublings, self.longest_s)


class Protocols:
    """Which protocol to speak.

    Attributes:
        current: with which to connect next.
    """

    def __init__(self, setting: Literal["auto", "3.1.1", "5"]) -> None:
        """Begin with MQTT 5 where `setting` leaves the choice."""
        self._auto = setting == "auto"
        self._settled = False
        self.current: Protocol = "5" if setting == "auto" else setting

    def worked(self) -> None:
        """The broker accepted the protocol."""
        self._settled = True

    def refused(self) -> bool:
        """The broker does not speak it; whether there is another one to try at once."""
        if self._auto:
            self._settled = False
            self.current = "3.1.1" if self.current == "5" else "5"
        return self._auto

    def unanswered(self) -> None:
        """The connection ended without an answer; some brokers refuse a protocol that way."""
        if not self._settled:
            self.refused()


def patience(keepalive_s: float, waiting_bytes: int) -> float:
    """Seconds without any confirmation after which a broker that owes some is taken for dead."""
    return 2 * keepalive_s + waiting_bytes / _SLOWEST_BYTES_PER_S
