"""One MQTT connection over paho, from its first byte to its end; after it there is a new one with a new will.

All that touches the socket happens in the thread that calls `run`. paho's own loop thread is not used: it ends without
a word when a callback raises (paho issues 894, 692), waits without jitter, and sends what the outbox sends again.
"""

import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from contract import codec, limits, topics
from contract.messages import UP, BlockRequest, DeltaRequest, Gone, Hello, MetadataRequest, RenewalRequest, Report, Up
from edge_agent.reconnect import Protocol, patience

_LOG = logging.getLogger(__name__)
_CHANNELS = {kind: channel for channel, kind in UP.items()}
_OUTBOUND = 32  # messages that the broker has not confirmed
_REPORT_BYTES = limits.MESSAGE_BYTES  # of reports that it has not confirmed, or one; a receipt waits behind no more
_SESSION_S = 7 * 86400  # how long an MQTT 5 broker remembers us; one of 3.1.1 decides by itself
# Later nobody wants to know. Where MQTT 5 is spoken, the broker then drops them for a coordinator that is away.
_EXPIRY_S: dict[type, int] = {
    Hello: 120,
    MetadataRequest: 60,
    BlockRequest: 60,
    DeltaRequest: 60,
    RenewalRequest: 60,
}
_LAST_DATA_RECEIVED = 52  # where Linux's `struct tcp_info` has the milliseconds since the last data
_GOODBYE_S = 1.0
_UNSUPPORTED_PROTOCOL = 0x84
_HINTS = {
    0x80: "without a word",
    0x87: "not authorised: its certificate may be revoked or not enrolled; run: edge-agent doctor",
    0x85: "the broker does not accept this device's name; run: edge-agent doctor",
    0x8E: "another connection uses this device's certificate",
}


@dataclass(frozen=True)
class Endpoint:
    """Where a device connects, and as whom."""

    device: str
    host: str
    port: int
    tls: Callable[[], ssl.SSLContext]
    boot: str
    keepalive_s: int
    answer_s: float


@dataclass(frozen=True)
class _Sent:
    info: mqtt.MQTTMessageInfo
    seq: int | None  # of a report
    size: int
    at: float


class Connection:
    """A connection to be, or that was.

    Attributes:
        number: in this start of the agent; the will bears it.
        accepted: the broker said yes.
        refused_protocol: it said that it does not speak this protocol.
        reason: why the connection ended.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        protocol: Protocol,
        number: int,
        *,
        on_accepted: Callable[["Connection"], None],
        on_message: Callable[[mqtt.MQTTMessage], None],
    ) -> None:
        """Prepare; `on_accepted` and `on_message` are called in the thread that calls `run`.

        Raises:
            OSError: no readable certificate.
        """
        self.number, self.protocol = number, protocol
        self.accepted = self.refused_protocol = False
        self.reason = ""
        self._endpoint = endpoint
        self._on_accepted, self._message = on_accepted, on_message
        self._lock = threading.Lock()
        self._waiting: list[_Sent] = []
        self._progress = 0.0
        self._client = client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=endpoint.device,
            clean_session=None if protocol == "5" else False,
            protocol=mqtt.MQTTv5 if protocol == "5" else mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        client.tls_set_context(endpoint.tls())
        client.will_set(topics.up(endpoint.device, "gone"), self._gone(), qos=1)
        client.connect_timeout = endpoint.answer_s
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_message, client.on_publish, client.on_subscribe = (
            self._on_message,
            self._on_publish,
            self._on_subscribe,
        )
        client.on_socket_open = _at_once
        # Without this paho writes to the socket in the thread that publishes; with it, it wakes the loop.
        client.on_socket_register_write = lambda *_: None

    def run(self, closing: threading.Event) -> None:
        """Connect and carry messages until the connection ends or `closing` is set; `reason` says why.

        Raises:
            Exception: what a callback raised; the connection is closed all the same.
        """
        client = self._client
        try:
            try:
                self._connect()
            except (OSError, ValueError) as error:
                self.reason = f"{self._endpoint.host}:{self._endpoint.port}: {error or type(error).__name__}"
                return
            deadline = time.monotonic() + self._endpoint.answer_s
            while not closing.is_set():
                code = client.loop(1.0)
                if code != mqtt.MQTT_ERR_SUCCESS:
                    self.reason = self.reason or mqtt.error_string(code)
                    return
                now = time.monotonic()
                if not self.accepted and now > deadline:
                    self.reason = f"no answer to CONNECT in {self._endpoint.answer_s:.0f} s"
                    return
                if self._is_stalled(now):
                    self.reason = f"the broker has confirmed nothing for {now - self._progress:.0f} s"
                    return
            self._finish()
        finally:
            self._close()

    def _connect(self) -> None:
        where = self._endpoint.host, self._endpoint.port, self._endpoint.keepalive_s
        if self.protocol == "3.1.1":
            self._client.connect(*where)
            return
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        properties.SessionExpiryInterval = _SESSION_S
        # clean_start=True with an expiry lost the session when Mosquitto restarted.
        self._client.connect(*where, clean_start=False, properties=properties)

    def _finish(self) -> None:
        """Write what `disconnect` queued."""
        end = time.monotonic() + _GOODBYE_S
        while time.monotonic() < end and self._client.loop(0.1) == mqtt.MQTT_ERR_SUCCESS:
            pass

    def _close(self) -> None:
        client = self._client
        open_socket = client.socket()
        if open_socket is not None:
            open_socket.close()
        # The client refers to us and we to it; without this its descriptors would wait for the garbage collector.
        client.on_connect = client.on_disconnect = client.on_message = client.on_publish = client.on_subscribe = None
        client.on_socket_register_write = None

    def send(self, message: Up) -> bool:
        """Queue a message at QoS 1; False where too much waits for the broker already."""
        payload = codec.encode(message)
        topic = topics.up(self._endpoint.device, _CHANNELS[type(message)])
        seq = message.seq if isinstance(message, Report) else None
        with self._lock:
            self._forget_confirmed()
            reports = sum(sent.size for sent in self._waiting if sent.seq is not None)
            if len(self._waiting) >= _OUTBOUND or (seq is not None and 0 < reports > _REPORT_BYTES - len(payload)):
                return False
            info = self._client.publish(topic, payload, qos=1, properties=self._properties(message))
            if info.rc != mqtt.MQTT_ERR_SUCCESS:
                return False
            now = time.monotonic()
            if not self._waiting:
                self._progress = now
            self._waiting.append(_Sent(info, seq, len(payload), now))
            return True

    def say_gone(self) -> None:
        """Tell the coordinator that this connection ends on purpose, and wait a moment until the broker has it."""
        with suppress(RuntimeError, ValueError):  # the connection went away in this very moment
            topic = topics.up(self._endpoint.device, "gone")
            self._client.publish(topic, self._gone(), qos=1).wait_for_publish(_GOODBYE_S)

    def disconnect(self) -> None:
        """Have the network thread end the connection in peace: the broker will not publish the will."""
        self._client.disconnect()

    def unconfirmed(self) -> list[int]:
        """Sequence numbers of reports that are on their way to the broker."""
        with self._lock:
            self._forget_confirmed()
            return [sent.seq for sent in self._waiting if sent.seq is not None]

    def subscribe(self, patterns: dict[str, int]) -> None:
        """Subscribe to patterns at their QoS; retained messages come again."""
        self._client.subscribe(sorted(patterns.items()))

    def unsubscribe(self, pattern: str) -> None:
        """Stop that."""
        self._client.unsubscribe(pattern)

    def quiet_s(self) -> float | None:
        """Seconds since the last byte came, also within a message; None where that cannot be told."""
        open_socket = self._client.socket()
        if not isinstance(open_socket, socket.socket):
            return None
        try:
            info = open_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
            (milliseconds,) = struct.unpack_from("I", info, _LAST_DATA_RECEIVED)
        except (OSError, struct.error):  # it was closed, or this is no Linux
            return None
        return float(milliseconds) / 1000

    def _gone(self) -> bytes:
        return codec.encode(Gone(boot=self._endpoint.boot, connection=self.number))

    def _properties(self, message: Up) -> Properties | None:
        """What MQTT 5 adds: when nobody wants the message any more, and a name to find it by on its way."""
        if self.protocol != "5":
            return None
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # as above
        if type(message) in _EXPIRY_S:
            properties.MessageExpiryInterval = _EXPIRY_S[type(message)]
        if isinstance(message, Report):
            properties.UserProperty = ("trace", f"{message.outbox[:8]}-{message.seq}")
        elif isinstance(message, Hello):
            properties.UserProperty = ("trace", f"{message.boot[:8]}-{message.seq}")
        return properties

    def _forget_confirmed(self) -> None:
        left = [sent for sent in self._waiting if not sent.info.is_published()]
        if len(left) < len(self._waiting):
            self._progress = time.monotonic()
        self._waiting = left

    def _is_stalled(self, now: float) -> bool:
        with self._lock:
            self._forget_confirmed()
            size = sum(sent.size for sent in self._waiting)
            return bool(self._waiting) and now - self._progress > patience(self._endpoint.keepalive_s, size)

    def _on_connect(self, _client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self.refused_protocol = reason.value == _UNSUPPORTED_PROTOCOL
            self.reason = f"the broker refused the connection: {_words(reason)}"
            return
        self.accepted = True
        self._on_accepted(self)

    def _on_disconnect(self, _client: mqtt.Client, _data: Any, flags: Any, reason: Any, _properties: Any) -> None:
        if not self.reason:
            who = (
                "the broker ended the connection" if flags.is_disconnect_packet_from_server else "the connection ended"
            )
            self.reason = f"{who}: {_words(reason)}"

    def _on_publish(self, _client: mqtt.Client, _data: Any, _mid: int, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            _LOG.warning("the broker did not take a message: %s", _words(reason))

    def _on_subscribe(self, _client: mqtt.Client, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        for reason in reasons:
            if reason.is_failure:
                _LOG.warning("the broker refused a subscription: %s", _words(reason))

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        try:
            self._message(message)
        except Exception:  # noqa: BLE001  # unconfirmed, it would come again for ever
            _LOG.exception("dropped a message that could not be taken")


def _words(reason: Any) -> str:
    return _HINTS.get(reason.value, str(reason))


def _at_once(_client: mqtt.Client, _data: Any, opened: Any) -> None:
    """A question goes out now, though what went before is not acknowledged yet (Nagle waits 40 ms and more)."""
    if opened.family != socket.AF_UNIX:  # a token's connection is carried by a child
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
