"""The MQTT session: one persistent connection that comes back by itself, and says no word that it cannot keep.

paho's network thread only moves messages into `inbox`; all work happens elsewhere, so that no exception of ours can
end that thread, and a thread that ends all the same is started again (paho issues 894, 692).
"""

import logging
import queue
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any, Protocol

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from contract import codec, limits, topics
from contract.messages import UP, Gone, Up

_LOG = logging.getLogger(__name__)
_CHANNELS = {kind: channel for channel, kind in UP.items()}
_INBOX = 64  # events; 64 blocks are 8 MiB
_LAST_DATA_RECEIVED = 52  # where Linux's `struct tcp_info` has the milliseconds since the last data
_OUTBOUND = 32  # messages that the broker has not confirmed; 32 blocks are 4 MiB
_PAYLOAD_BYTES = limits.MESSAGE_BYTES  # the largest that anybody may send to a device


@dataclass(frozen=True)
class Connected:
    """The session is up, perhaps again."""


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
    """A Link over paho, MQTT 3.1.1, QoS 1, with the last will `Gone`.

    Attributes:
        inbox: events in order; while it is full, the network thread waits, and the broker keeps what is to come.
        connected: as of now.
        connections: so far.
    """

    def __init__(self, device: str, *, host: str, port: int, tls: SSLContext, boot: str) -> None:
        self.inbox: queue.Queue[Event] = queue.Queue(_INBOX)
        self.connected = False
        self.connections = 0
        self._device = device
        self._boot = boot
        self._closing = threading.Event()
        self._patterns = {topics.all_down(device): 1}
        self._client = client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=device, clean_session=False, protocol=mqtt.MQTTv311
        )
        client.tls_set_context(tls)
        client.will_set(topics.up(device, "gone"), codec.encode(Gone(boot=boot)), qos=1)
        client.reconnect_delay_set(1, 16)
        client.max_queued_messages_set(_OUTBOUND)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.connect_async(host, port, keepalive=30)

    def start(self) -> None:
        """Connect, and stay connected, in paho's thread (the only one that may touch the socket)."""
        self._client.loop_start()

    def revive(self) -> None:
        """Start the network thread again if something ended it; call this now and then."""
        if self._client.loop_start() == mqtt.MQTT_ERR_SUCCESS:  # it refuses while its thread lives
            _LOG.error("the MQTT thread had died and is started again")

    def close(self) -> None:
        """Say goodbye, disconnect and end the thread."""
        if self.connected:
            topic, payload = topics.up(self._device, "gone"), codec.encode(Gone(boot=self._boot))
            with suppress(RuntimeError, ValueError):  # the connection went away in this very moment
                self._client.publish(topic, payload, qos=1).wait_for_publish(1.0)
        self._closing.set()
        self._client.disconnect()
        self._client.loop_stop()

    def send(self, message: Up) -> bool:
        """Hand a message to the connection; False where there is none, or too much waits for it already."""
        if not self.connected:
            return False
        topic = topics.up(self._device, _CHANNELS[type(message)])
        return self._client.publish(topic, codec.encode(message), qos=1).rc == mqtt.MQTT_ERR_SUCCESS

    def quiet_s(self) -> float | None:
        """Seconds since the last byte came, also within a message; None where that cannot be told."""
        connection = self._client.socket()
        if not isinstance(connection, socket.socket):
            return None
        try:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
            (milliseconds,) = struct.unpack_from("I", info, _LAST_DATA_RECEIVED)
        except (OSError, struct.error):  # it was closed, or this is no Linux
            return None
        return float(milliseconds) / 1000

    def use_tls(self, tls: SSLContext) -> None:
        """Show another certificate from the next connection on."""
        self._client._ssl_context = tls  # noqa: SLF001 - tls_set_context takes one once only

    def subscribe(self, pattern: str, *, qos: int = 1) -> None:
        """Receive what is published on `pattern`, now and after every reconnection."""
        self._patterns[pattern] = qos
        if self.connected:
            self._client.subscribe(pattern, qos=qos)

    def unsubscribe(self, pattern: str) -> None:
        """Stop that."""
        self._patterns.pop(pattern, None)
        if self.connected:
            self._client.unsubscribe(pattern)

    def _on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            _LOG.warning("the broker refused the connection: %s", reason)
            return
        self.connections += 1
        self.connected = True  # first: a pattern that comes now is then subscribed to by its own thread
        client.subscribe(sorted(self._patterns.copy().items()))
        self._put(Connected())

    def _on_disconnect(self, _client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.connected = False
        self._put(Disconnected(str(reason)))

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
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
