"""The gateway's socket: one MQTT session of the coordinator, over mutual TLS."""

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from contract import topics
from coordinator.broker import revoked
from coordinator.config import Config
from coordinator.deltas.service import Deltas
from coordinator.errors import SetupError
from coordinator.fleet.service import Fleet
from coordinator.gateway.core import Commands, Core, Handler, Instructions, Outgoing
from coordinator.gateway.counters import Counters
from coordinator.signing.service import Signing
from coordinator.storage import Storage

logger = logging.getLogger(__name__)

KEEPALIVE_S = 30
SESSION_S = 7 * 86400  # how long an MQTT 5 broker remembers us
UNSUPPORTED_PROTOCOL = 0x84
RECONNECT_S = (1, 5)  # shortest and longest pause between two attempts
ACK_TIMEOUT_S = 10.0  # how long a tick waits for the broker


class Gateway:
    """Carries messages between the broker and the services. `start`, then `tick` often, then `stop`."""

    def __init__(
        self,
        config: Config,
        state: Path,
        *,
        storage: Storage,
        fleet: Fleet,
        signing: Signing,
        handlers: Mapping[type, Handler],
        instructions: Instructions,
        commands: Commands,
        deltas: Deltas,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Compose the gateway; nothing is opened yet.

        Args:
            config: where the broker is.
            state: the coordinator's folder, with its certificate.
            storage, fleet, signing: what messages are about.
            handlers: by type of a report's body; each joins the transaction that notes the report.
            instructions: what the rounds want carried.
            commands: what operators want carried.
            deltas: patches between bundles.
            clock: seconds since the epoch.
        """
        self._config = config
        self._core = Core(storage, fleet, signing, handlers, instructions, commands=commands, deltas=deltas)
        self._clock = clock
        self._connected = threading.Event()
        self._fresh = threading.Event()  # connected since the last tick
        self._lost = False  # and once since then the broker did not remember us
        self._pki = state / "pki"
        self._speaks_5 = config.broker != "embedded"  # until an external broker says that it does not
        self._refused_5 = threading.Event()
        self._client = self._make_client()

    @property
    def counters(self) -> Counters:
        """What was taken and dropped; a Prometheus collector."""
        return self._core.counters

    @property
    def connected(self) -> bool:
        """Whether the broker is there now."""
        return self._connected.is_set()

    def may_fetch(self, device: str, sha256: str) -> bool:
        """Whether a device may have a blob, over whatever transport; see `Core.may_fetch`."""
        return self._core.may_have(device, sha256, self._clock())

    def start(self) -> None:
        """Connect in the background, and again whenever the connection is lost."""
        where = self._config.broker_host or self._config.host, self._config.broker_port, KEEPALIVE_S
        if self._speaks_5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
            properties.SessionExpiryInterval = SESSION_S
            self._client.connect_async(*where, clean_start=False, properties=properties)
        else:
            self._client.connect_async(*where)
        self._client.loop_start()

    def stop(self) -> None:
        """Disconnect; the broker keeps what comes for us."""
        self._client.disconnect()
        self._client.loop_stop()
        self._connected.clear()

    def tick(self, now: float) -> None:
        """Publish what is new. A failure leaves it for the next tick."""
        self._revive()
        if not self.connected:
            return
        if self._fresh.is_set():
            self._fresh.clear()
            lost, self._lost = self._lost, False
            try:
                self._core.reconnected(session_lost=lost)
            except Exception:
                self._lost |= lost
                self._fresh.set()
                raise
        messages, published = self._core.tick(now)
        if self._publish(messages):
            published()

    def kick(self, devices: Sequence[str]) -> bool:
        """Have the broker cut the sessions of devices; False where it cannot be told now.

        The embedded broker does it by itself, when it reads that their certificates are revoked.
        """
        if self._config.broker == "embedded":
            return True
        return self.connected and self._publish([Outgoing(revoked.CONTROL, revoked.kick_command(devices))])

    def _revive(self) -> None:
        """Start paho's network thread again if it died; paho would not, nor say so. Or speak 3.1.1 from now on."""
        if self._refused_5.is_set():
            self._refused_5.clear()
            self._client.loop_stop()
            self._speaks_5 = False
            self._client = self._make_client()
            self.start()
        thread = self._client._thread  # noqa: SLF001 - there is no public word for it
        if thread is not None and not thread.is_alive():
            logger.error("the MQTT thread died and starts again")
            self._connected.clear()
            self._client.loop_stop()
            self._client.loop_start()

    def _publish(self, messages: Iterable[Outgoing]) -> bool:
        """Publish; whether the broker has acknowledged all of them, or at QoS 0 the socket has taken them."""
        infos = [self._send(message) for message in messages]
        deadline = time.monotonic() + ACK_TIMEOUT_S
        for info in infos:
            if info.rc != mqtt.MQTT_ERR_SUCCESS:
                return False
            info.wait_for_publish(max(0.0, deadline - time.monotonic()))
            if not info.is_published():
                return False
        return True

    def _send(self, message: Outgoing) -> mqtt.MQTTMessageInfo:
        properties = None
        if self._speaks_5 and message.expires_at is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # as above
            properties.MessageExpiryInterval = min(max(1, int(message.expires_at - self._clock())), 2**32 - 1)
        return self._client.publish(
            message.topic, message.payload, qos=message.qos, retain=message.retain, properties=properties
        )

    def _make_client(self) -> mqtt.Client:
        pki = self._pki
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=topics.COORDINATOR,
            clean_session=None if self._speaks_5 else False,
            protocol=mqtt.MQTTv5 if self._speaks_5 else mqtt.MQTTv311,
        )
        # An exception in a callback would end paho's thread without a word; ours are caught where they happen.
        client.suppress_exceptions = True
        try:
            context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
            context.load_cert_chain(pki / f"{topics.COORDINATOR}.crt", pki / f"{topics.COORDINATOR}.key")
        except (OSError, ssl.SSLError) as error:
            raise SetupError(
                f"{pki}: no readable certificate of the coordinator ({error}); run: fieldfare serve"
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        client.tls_set_context(context)
        client.reconnect_delay_set(*RECONNECT_S)
        client.max_queued_messages_set(100_000)
        client.on_socket_open = _at_once
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _on_connect(self, client: mqtt.Client, _data: Any, flags: Any, code: Any, _properties: Any) -> None:
        if code.is_failure:
            if code.value == UNSUPPORTED_PROTOCOL and self._speaks_5:
                logger.info("the broker does not speak MQTT 5; trying 3.1.1")
                self._refused_5.set()
                return
            logger.error("the broker refused the coordinator: %s", code)
            return
        client.subscribe(topics.all_up(), qos=1)
        self._lost |= not flags.session_present
        self._fresh.set()
        self._connected.set()
        logger.info("connected to the broker on %s:%d", self._config.host, self._config.broker_port)

    def _on_disconnect(self, _client: mqtt.Client, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        self._connected.clear()
        logger.log(logging.WARNING if code.is_failure else logging.INFO, "the connection to the broker ended: %s", code)

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        trace = _trace(message)
        logger.debug("a message on %.160s, trace %s", message.topic, trace)
        try:
            for answer in self._core.receive(message.topic, bytes(message.payload), self._clock()):
                self._send(answer)
        except Exception:
            # Nothing was committed and nothing is acknowledged: the agent sends the report again.
            logger.exception("a message on %.160s, trace %s, could not be handled", message.topic, trace)


def _trace(message: mqtt.MQTTMessage) -> str:
    """The name that an MQTT 5 device gave its message, so that it is found in the logs of both; `-` for none."""
    pairs = getattr(message.properties, "UserProperty", [])
    return next((str(value)[:80] for key, value in pairs if key == "trace"), "-")


def _at_once(_client: mqtt.Client, _data: Any, opened: Any) -> None:
    """An answer goes out now, though what went before is not acknowledged yet (Nagle waits 40 ms and more)."""
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
