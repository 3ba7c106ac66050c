"""The MQTT session: connections that follow each other by themselves, and no word that it cannot keep.

The network thread only moves messages into `inbox`; all work happens elsewhere. Whatever goes wrong in it is logged and
answered with a new connection, after a pause that grows; should the thread end all the same, it is started again.
"""

import logging
import queue
import random
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol

import paho.mqtt.client as mqtt

from contract import limits, topics
from contract.messages import Hello, Up
from edge_agent.connection import Connection, Endpoint
from edge_agent.errors import AgentError
from edge_agent.reconnect import Backoff, Protocols

_LOG = logging.getLogger(__name__)
_INBOX = 64  # events; 64 blocks are 8 MiB
_PAYLOAD_BYTES = limits.MESSAGE_BYTES  # the largest that anybody may send to a device
_ANSWER_S = 20.0  # for TCP, for the TLS handshake and for CONNACK, each; a satellite needs a few
_SAID = 8  # reasons for one absence that are told; more would only fill logs
_JOIN_S = 3.0  # a thread that waits for a dead broker then is left behind


@dataclass(frozen=True)
class Connected:
    """The session is up, perhaps again; `mqtt` is the protocol version that was agreed on."""

    mqtt: str = ""


@dataclass(frozen=True)
class Disconnected:
    """The session is down; it will come back by itself."""

    reason: str


@dataclass(frozen=True)
class Message:
    """A message as it came."""

    topic: str
    payload: bytes


Event = Connected | Disconnected | Message


class Link(Protocol):
    """What the agent's parts need of a session."""

    def send(self, message: Up) -> bool:
        """Hand a message to the connection; False where there is none."""
        ...

    @property
    def connections(self) -> int:
        """Connections so far; a change means that what was on its way at QoS 0 is lost."""
        ...

    def quiet_s(self) -> float | None:
        """Seconds since the last byte came, None where that cannot be told."""
        ...

    def subscribe(self, pattern: str, *, qos: int = 1) -> None:
        """Receive what is published on `pattern`, now and after every reconnection."""
        ...

    def unsubscribe(self, pattern: str) -> None:
        """Stop that."""
        ...


class Session:
    """A Link over MQTT 5 or 3.1.1, QoS 1, with the last will `Gone`.

    Attributes:
        inbox: events in order; while it is full, the network thread waits, and the broker keeps what is to come.
    """

    def __init__(
        self,
        device: str,
        *,
        host: str,
        port: int,
        tls: Callable[[], ssl.SSLContext],
        boot: str,
        protocol: Literal["auto", "3.1.1", "5"] = "auto",
        keepalive_s: int = 30,
        answer_s: float = _ANSWER_S,
        backoff: Backoff | None = None,
    ) -> None:
        """Prepare; nothing is opened.

        Args:
            device: name of the device.
            host, port: of the broker.
            tls: makes the TLS context of each connection, so that a renewed certificate is used.
            boot: name of this start of the agent.
            protocol: of `agent.toml`.
            keepalive_s: of the MQTT connection.
            answer_s: how long the broker may take to answer.
            backoff: pauses between connections.
        """
        self.inbox: queue.Queue[Event] = queue.Queue(_INBOX)
        self._endpoint = Endpoint(
            device=device, host=host, port=port, tls=tls, boot=boot, keepalive_s=keepalive_s, answer_s=answer_s
        )
        self._protocols, self._backoff = Protocols(protocol), backoff or Backoff()
        self._patterns = {topics.all_down(device): 1}
        self._closing, self._hurry = threading.Event(), threading.Event()
        self._connection: Connection | None = None  # that the broker accepted
        self._attempts, self._failures = 0, 0
        self._said: set[str] = set()  # why there is no connection, as it was told since the last one
        self._thread: threading.Thread | None = None

    @property
    def connected(self) -> bool:
        """Whether the broker is there now."""
        return self._connection is not None

    @property
    def connections(self) -> int:
        """Number of the newest connection in this start of the agent, 0 before the first."""
        connection = self._connection
        return self._attempts if connection is None else connection.number

    def start(self) -> None:
        """Connect, and stay connected, in a thread of its own (the only one that may touch the socket)."""
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    def revive(self) -> None:
        """Start the network thread again if something ended it; call this now and then."""
        if self._thread is not None and not self._thread.is_alive() and not self._closing.is_set():
            _LOG.error("the MQTT thread had died and is started again")
            self._connection = None
            self.start()

    def hurry(self) -> None:
        """Try again now: what kept the broker from accepting us, such as an old certificate, may be gone."""
        self._failures = 0
        self._hurry.set()

    def close(self) -> None:
        """Say goodbye, disconnect and end the thread."""
        connection = self._connection
        if connection is not None:
            connection.say_gone()
        self._closing.set()
        self._hurry.set()
        if connection is not None:
            connection.disconnect()
        if self._thread is not None:
            self._thread.join(_JOIN_S)

    def send(self, message: Up) -> bool:
        """Hand a message to the connection; False where there is none, or too much waits for it already."""
        connection = self._connection
        if connection is None or (isinstance(message, Hello) and message.connection != connection.number):
            return False
        return connection.send(message)

    def unconfirmed(self) -> list[int]:
        """Sequence numbers of reports that are on their way to the broker: to send them again now would be waste."""
        connection = self._connection
        return [] if connection is None else connection.unconfirmed()

    def quiet_s(self) -> float | None:
        """Seconds since the last byte came, also within a message; None where that cannot be told."""
        connection = self._connection
        return None if connection is None else connection.quiet_s()

    def subscribe(self, pattern: str, *, qos: int = 1) -> None:
        """Receive what is published on `pattern`, now and after every reconnection."""
        self._patterns[pattern] = qos
        if (connection := self._connection) is not None:
            connection.subscribe({pattern: qos})

    def unsubscribe(self, pattern: str) -> None:
        """Stop that."""
        self._patterns.pop(pattern, None)
        if (connection := self._connection) is not None:
            connection.unsubscribe(pattern)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                pause = self._connect_once()
            except AgentError as error:  # no readable certificate
                pause = self._failed(str(error))
            except Exception:  # noqa: BLE001  # whatever it is, the agent must come back
                _LOG.exception("the connection failed unexpectedly")
                pause = self._failed("failed unexpectedly")
            self._hurry.wait(pause)
            self._hurry.clear()

    def _connect_once(self) -> float:
        """One connection from beginning to end; seconds to wait before the next."""
        self._attempts += 1
        connection = Connection(
            self._endpoint,
            self._protocols.current,
            self._attempts,
            on_accepted=self._on_accepted,
            on_message=self._on_message,
        )
        try:
            connection.run(self._closing)
        finally:
            self._connection = None
        if self._closing.is_set():
            return 0.0
        if connection.refused_protocol and self._protocols.refused():
            _LOG.info("the broker does not speak MQTT %s; trying %s", connection.protocol, self._protocols.current)
            return 0.0
        if not connection.accepted:
            self._protocols.unanswered()
        return self._failed(connection.reason)

    def _failed(self, reason: str) -> float:
        self._connection = None
        self._failures += 1
        pause = self._backoff.pause(self._failures, random.random)
        if reason in self._said or len(self._said) >= _SAID:
            _LOG.info("%s; again in %.1f s", reason, pause)
        else:
            _LOG.warning("%s; again in %.1f s", reason, pause)
            self._put(Disconnected(reason))
            self._said.add(reason)
        return pause

    def _on_accepted(self, connection: Connection) -> None:
        self._failures = 0
        self._said.clear()
        self._protocols.worked()
        self._connection = connection  # first: a pattern that comes now is then subscribed to by its own thread
        connection.subscribe(dict(self._patterns))
        self._put(Connected(connection.protocol))

    def _on_message(self, message: mqtt.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            _LOG.warning("dropped a message whose topic is no text")
            return
        if len(message.payload) > _PAYLOAD_BYTES:
            _LOG.warning("dropped a message of %d bytes on %s", len(message.payload), topic[:120])
            return
        self._put(Message(topic, bytes(message.payload)))

    def _put(self, event: Event) -> None:
        while not self._closing.is_set():
            with suppress(queue.Full):
                self.inbox.put(event, timeout=0.2)
                return
