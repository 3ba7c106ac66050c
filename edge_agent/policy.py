"""When an update may proceed, by the owner's rules. Pure: times, and whether the network is metered, come in.

A random delay is drawn from the device's name and the wish, so that a restart does not draw again, and runs on the
agent's own clock.
"""

import hashlib
import threading
from collections.abc import Sequence
from typing import NamedTuple

from edge_agent.config import Updates
from edge_agent.windows import until_open_s

_LOOK_AGAIN_S = 60.0  # at whether the network is metered


class Verdict(NamedTuple):
    """Whether to go on: seconds to wait, 0 for now; why; and whether only a patch may be fetched."""

    wait_s: float
    reason: str = ""
    patches_only: bool = False


def delay_s(most_s: float, device: str, model: str, revision: int) -> float:
    """The random delay of a wish: the same for ever for one device, spread evenly over a fleet."""
    digest = hashlib.sha256(f"{device}/{model}/{revision}".encode()).digest()
    return most_s * int.from_bytes(digest[:8], "big") / 2**64


def decide(updates: Updates, *, delay_left_s: float, local_s: float, metered: bool) -> Verdict:
    """Whether an update may proceed now.

    Args:
        updates: the owner's rules.
        delay_left_s: of the random delay.
        local_s: seconds after local midnight.
        metered: whether the network costs by the byte now.
    """
    if metered and updates.metered == "never":
        return Verdict(_LOOK_AGAIN_S, "waits for a network that is not metered")
    if delay_left_s > 0:
        return Verdict(delay_left_s, f"waits for its random delay, {delay_left_s:.0f} s more")
    closed_s = until_open_s(updates.maintenance, local_s)
    if closed_s > 0:
        return Verdict(closed_s, f"waits for the maintenance window {', '.join(updates.maintenance)}")
    return Verdict(0.0, patches_only=metered and updates.metered == "delta")


class Bucket:
    """A token bucket: on average so many bytes a second, at most a few seconds' worth at once.

    What is spent may exceed what is there (a block is never split); the next spender waits until that is made up for.
    """

    BURST_S = 4.0

    def __init__(self, bytes_per_s: float, now: float) -> None:
        """Full for one piece, whatever its size; 0 bytes a second is no limit."""
        self._rate, self._level, self._at = bytes_per_s, 1.0, now
        self._lock = threading.Lock()  # all pulls share one

    def take(self, sizes: Sequence[int], now: float) -> int:
        """How many of these pieces may be fetched now, in order; they count as fetched."""
        with self._lock:
            if not self._rate:
                return len(sizes)
            self._level = min(self._rate * self.BURST_S, self._level + max(0.0, now - self._at) * self._rate)
            self._at = now
            taken = 0
            while taken < len(sizes) and self._level > 0:
                self._level -= sizes[taken]
                taken += 1
            return taken
