"""How many blocks to ask for at a time, and when to believe that one is lost. Pure: times come in as arguments.

A block takes 10 ms on a LAN and 10 s over 2G. To ask again for what is still on its way doubles the traffic of the
slowest links, and to have a minute of blocks queued there keeps the answer to a ping behind them until the connection
counts as dead. So the window begins small and follows the measured rate, and silence on the wire, not time, says that
a block is lost.
"""

from contract import limits

_AHEAD_S = 4.0  # seconds of blocks that may be on their way
_SMALLEST = 2  # one arrives while the next is asked for


class Pace:
    """The rate of a link, as the blocks of all pulls showed it."""

    def __init__(self, *, window: int, retry_s: float) -> None:
        """Begin without knowledge.

        Args:
            window: most blocks on their way.
            retry_s: seconds of silence on the wire after which blocks are asked for again.
        """
        self._window, self._retry_s = window, retry_s
        self._block_s: float | None = None
        self._event_at = 0.0  # when a block came, or was asked for over an idle link
        self._repeats = 0  # of the requests that nothing answered

    def asked(self, now: float, *, idle: bool) -> None:
        """Blocks were asked for; `idle`: none was on its way before."""
        if idle:
            self._event_at = now

    def arrived(self, now: float, size: int) -> None:
        """A block of `size` bytes came that was asked for; a short one says little about the rate."""
        took, self._repeats = max(0.0, now - self._event_at), 0
        if size < limits.BLOCK_BYTES:
            self._event_at = now
            return
        self._block_s = took if self._block_s is None else 0.7 * self._block_s + 0.3 * took
        self._event_at = now

    @property
    def window(self) -> int:
        """Blocks that may be on their way."""
        if self._block_s is None:
            return min(_SMALLEST, self._window)
        ahead = self._window if self._block_s * self._window <= _AHEAD_S else int(_AHEAD_S / self._block_s)
        return min(max(ahead, _SMALLEST), self._window)

    def room(self, on_their_way: int) -> int:
        """Blocks to ask for now; several at a time where the window is wide."""
        room = self.window - on_their_way
        return room if room >= max(1, self.window // 2) else 0

    def silent(self, now: float, quiet_s: float | None) -> float:
        """Seconds without a sign that blocks still come.

        Args:
            now: monotonic seconds.
            quiet_s: since the last byte came over the connection, None where that cannot be told.
        """
        waited = now - self._event_at
        return waited if quiet_s is None else min(waited, quiet_s)

    def lost(self, now: float, quiet_s: float | None) -> bool:
        """Whether what was asked for will not come any more."""
        usual = 3 * self._retry_s if self._block_s is None else max(self._retry_s, 4 * self._block_s)
        later = 2 ** min(self._repeats, 3)  # a network that stalls for long is not flooded when it goes on
        if quiet_s is None:
            return now - self._event_at >= usual * later
        # Other messages may keep the wire busy after a block was lost: then time must do.
        return self.silent(now, quiet_s) >= self._retry_s * later or now - self._event_at >= 3 * usual * later

    def repeated(self, now: float) -> None:
        """What was lost is asked for again."""
        self._repeats += 1
        self._event_at = now
