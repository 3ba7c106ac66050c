"""What the embedded broker owes one client: queued and unacknowledged messages, kept while it is away.

Pure state: no socket, no clock. amqtt 0.11 gives up a QoS 1 message five seconds after it was sent, and when the
connection drops; here it stays until it is acknowledged (MQTT 3.1.1, section 4.4).
"""

from collections import deque
from dataclasses import dataclass, field, replace
from typing import NamedTuple

QUEUED_MESSAGES = 10_000
QUEUED_BYTES = 64 * 1024 * 1024
INFLIGHT = 64


@dataclass(frozen=True)
class Message:
    """A message on its way to one client, at the quality of service it is delivered with (0 or 1)."""

    topic: str
    data: bytes
    qos: int
    retain: bool = False
    dup: bool = False


class Delivery(NamedTuple):
    """A message to send now; `packet_id` is None at QoS 0."""

    packet_id: int | None
    message: Message


@dataclass
class ClientSession:
    """One client's subscriptions and deliveries. `disconnected_at` is set by the broker while it is away."""

    client_id: str
    persistent: bool
    subscriptions: dict[str, int] = field(default_factory=dict)
    received: set[int] = field(default_factory=set)  # QoS 2 packet ids that wait for their release
    disconnected_at: float | None = None
    dropped: int = 0
    _queue: deque[Message] = field(default_factory=deque)
    _bytes: int = 0
    _inflight: dict[int, Message] = field(default_factory=dict)
    _last_id: int = 0

    def offer(self, message: Message, *, connected: bool) -> bool:
        """Queue a message; False if it was dropped: QoS 0 for an absent client, or the queue is full."""
        full = len(self._queue) >= QUEUED_MESSAGES or self._bytes + len(message.data) > QUEUED_BYTES
        if full or (not connected and not (message.qos and self.persistent)):
            self.dropped += full
            return False
        self._queue.append(message)
        self._bytes += len(message.data)
        return True

    def next(self) -> Delivery | None:
        """Take the next message to send, or None while nothing waits or too many are unacknowledged."""
        if not self._queue or (self._queue[0].qos and len(self._inflight) >= INFLIGHT):
            return None
        message = self._queue.popleft()
        self._bytes -= len(message.data)
        if not message.qos:
            return Delivery(None, message)
        packet_id = self._free_id()
        self._inflight[packet_id] = message
        return Delivery(packet_id, message)

    def acknowledged(self, packet_id: int) -> None:
        """The client has the message; an unknown id means that it said so twice."""
        self._inflight.pop(packet_id, None)

    def disconnected(self) -> None:
        """The connection ended: what was not acknowledged will be sent again, first and marked as a duplicate."""
        again = [replace(message, dup=True) for message in self._inflight.values()]
        self._inflight.clear()
        waiting = [message for message in self._queue if message.qos]
        self._queue = deque([*again, *waiting])
        self._bytes = sum(len(message.data) for message in self._queue)

    @property
    def waiting(self) -> int:
        """Messages queued or unacknowledged."""
        return len(self._queue) + len(self._inflight)

    def _free_id(self) -> int:
        # INFLIGHT is far below 65535, so a free one is always near.
        while True:
            self._last_id = self._last_id % 65535 + 1
            if self._last_id not in self._inflight:
                return self._last_id
