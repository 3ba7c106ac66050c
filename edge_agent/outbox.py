"""Which reports to send now: in order, few at a time, again when nobody confirmed them."""

from collections.abc import Sequence

_IN_FLIGHT = 8


class Flow:
    """Pure bookkeeping of reports on their way."""

    def __init__(self, *, retry_s: float) -> None:
        """Begin with nothing in flight; a report is due again `retry_s` seconds after it was sent."""
        self._retry_s = retry_s
        self._sent: dict[int, float] = {}

    def reset(self) -> None:
        """The connection is new: nothing of what was sent may be relied on."""
        self._sent.clear()

    def due(self, pending: Sequence[int], now: float) -> list[int]:
        """What to send now.

        Args:
            pending: the first unconfirmed sequence numbers, in order.
            now: monotonic seconds.
        """
        window = pending[:_IN_FLIGHT]
        self._sent = {seq: at for seq, at in self._sent.items() if seq in window}
        return [seq for seq in window if seq not in self._sent or now - self._sent[seq] >= self._retry_s]

    def sent(self, seq: int, now: float) -> None:
        """A report was handed to the connection."""
        self._sent[seq] = now
