"""The embedded broker: amqtt's listener, packet codecs and plugins, with our own sessions.

amqtt 0.11.4 as it comes would not do for a fleet, so `FleetBroker` replaces how it serves a connection:

- it only asks for a client certificate (`CERT_OPTIONAL`); here the handshake fails without one;
- it deletes or changes the session that a CONNECT names before it authenticates; here identity comes first;
- it forgets QoS 1 messages that are not acknowledged in five seconds or when the connection drops;
- on reconnection it sends a client the retained messages of everybody's subscriptions;
- a take-over leaves the new connection marked as disconnected;
- it reads packets of any announced length, and never misses a client that went silent.

Sessions and retained messages live in memory. A broker that starts again has none: agents subscribe again, the
coordinator publishes desired states again, and reports wait in the agents' outboxes.
"""

import asyncio
import logging
import signal
import ssl
import time
from pathlib import Path
from typing import Any

from amqtt.broker import Broker
from amqtt.contexts import Action, BrokerConfig, ListenerConfig
from amqtt.mqtt.connect import ConnectPacket
from amqtt.session import Session

from coordinator import config as configuration
from coordinator import pki
from coordinator.broker import revoked
from coordinator.broker.connection import REFUSED, Connection
from coordinator.broker.plugins import certificate_serial
from coordinator.broker.session import ClientSession, Message
from coordinator.errors import SetupError

logger = logging.getLogger(__name__)

SESSION_EXPIRY_S = 7 * 24 * 3600.0
RETAINED_MESSAGES = 100_000
SWEEP_S = 60.0


class FleetBroker(Broker):
    """An amqtt broker whose clients are known by their certificates; implements `connection.Hub`."""

    def __init__(self, config: BrokerConfig) -> None:
        super().__init__(config)
        self._clients: dict[str, ClientSession] = {}
        self._connections: dict[str, Connection] = {}
        self._retained: dict[str, Message] = {}
        self._serving: dict[asyncio.Task[Any], Connection] = {}
        self._revoked: frozenset[int] = frozenset()

    def revoke(self, serials: frozenset[int]) -> None:
        """Refuse the holders of these certificates from now on, and cut the connections of those that are here."""
        self._revoked = serials
        for connection in list(self._serving.values()):
            if certificate_serial(connection.tls) in serials:
                logger.warning("cut the connection of a revoked certificate")
                connection.abort()

    @staticmethod
    def _create_ssl_context(listener: ListenerConfig) -> ssl.SSLContext:
        context = Broker._create_ssl_context(listener)  # noqa: SLF001 - the method that is overridden
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """Serve a client whose TLS handshake succeeded."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio calls this in a task
        connection = self._serving[task] = Connection(self, reader, writer)
        try:
            await connection.serve()
        finally:
            del self._serving[task]

    async def admit(self, connect: ConnectPacket, tls: Any) -> bool:
        """Ask the authentication plugin, before anything of the named session is touched."""
        claim = Session()
        claim.client_id = connect.client_id
        claim.ssl_object = tls
        admitted = certificate_serial(tls) not in self._revoked
        admitted = admitted and bool(await self._authenticate(claim, self.listeners_config["default"]))
        if not admitted:
            logger.warning("refused a client that calls itself %.80r: it is not, or is revoked", connect.client_id)
        return admitted

    def attach(self, connection: Connection) -> tuple[ClientSession, bool]:
        """Give a connection its session; an older connection of the same client is cut."""
        client_id = connection.connect.client_id
        older = self._connections.pop(client_id, None)
        if older is not None:
            self._suspend(older.session)
            older.abort()
        session = self._clients.get(client_id)
        clean = connection.connect.clean_session_flag
        present = session is not None and session.persistent and not clean
        if session is None or not present:
            session = ClientSession(client_id, persistent=not clean)
            self._clients[client_id] = session
        session.disconnected_at = None
        self._connections[client_id] = connection
        connection.wake()
        return session, present

    def detach(self, connection: Connection) -> None:
        """Keep the session of a connection that ended, unless a newer connection has it."""
        client_id = connection.session.client_id
        if self._connections.get(client_id) is connection:
            del self._connections[client_id]
            self._suspend(connection.session)

    def _suspend(self, session: ClientSession) -> None:
        session.disconnected()
        session.disconnected_at = time.monotonic()
        if not session.persistent and self._clients.get(session.client_id) is session:
            del self._clients[session.client_id]

    async def publish(self, session: ClientSession, message: Message) -> None:
        """Deliver a client's message once to each client with a matching subscription."""
        if not await self._allowed(session, message.topic, Action.PUBLISH):
            logger.warning("%s may not publish to %.120r", session.client_id, message.topic)
            return
        if message.retain:
            self._keep(message)
        for other in self._clients.values():
            granted = [
                qos for topic_filter, qos in other.subscriptions.items() if self._matches(message.topic, topic_filter)
            ]
            if granted:
                self._offer(other, Message(message.topic, message.data, min(max(granted), message.qos, 1)))

    async def subscribe(self, session: ClientSession, topic_filter: str, qos: int) -> int:
        """Subscribe at quality of service 0 or 1, or refuse."""
        levels = topic_filter.split("/")
        wild = any(("#" in level and level != "#") or ("+" in level and level != "+") for level in levels)
        if wild or "#" in levels[:-1] or not await self._allowed(session, topic_filter, Action.SUBSCRIBE):
            logger.warning("%s may not subscribe to %.120r", session.client_id, topic_filter)
            return REFUSED
        session.subscriptions[topic_filter] = min(qos, 1)
        return session.subscriptions[topic_filter]

    def retained(self, session: ClientSession, topic_filter: str, qos: int) -> None:
        """Queue the retained messages that a subscription matches."""
        for topic, message in self._retained.items():
            if self._matches(topic, topic_filter):
                self._offer(session, Message(topic, message.data, min(qos, message.qos, 1), retain=True))

    def _keep(self, message: Message) -> None:
        if not message.data:
            self._retained.pop(message.topic, None)
        elif message.topic in self._retained or len(self._retained) < RETAINED_MESSAGES:
            self._retained[message.topic] = message

    def _offer(self, session: ClientSession, message: Message) -> None:
        connection = self._connections.get(session.client_id)
        if session.offer(message, connected=connection is not None) and connection is not None:
            connection.wake()

    async def _allowed(self, session: ClientSession, topic: str, action: Action) -> bool:
        asking = Session()
        asking.client_id = session.client_id
        return bool(await self._topic_filtering(asking, topic, action))

    async def _session_monitor(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            oldest = time.monotonic() - SESSION_EXPIRY_S
            for client_id, session in list(self._clients.items()):
                if session.disconnected_at is not None and session.disconnected_at < oldest:
                    del self._clients[client_id]

    async def shutdown(self) -> None:
        """Cut every connection, then stop as amqtt does."""
        for server in self._servers.values():
            server.instance.close()
        serving = dict(self._serving)
        for connection in serving.values():
            connection.abort()  # not a cancelled task, which asyncio's streams complain about on the log
        if serving:
            await asyncio.wait(serving)
        await super().shutdown()


def broker_config(state: Path, config: configuration.Config) -> BrokerConfig:
    """The configuration of amqtt: one TLS listener, our two plugins and none of its own."""
    folder = state / "pki"
    listener = ListenerConfig(
        bind=f"{config.host}:{config.broker_port}",
        max_connections=-1,
        ssl=True,
        cafile=folder / "ca.crt",
        certfile=folder / "broker.crt",
        keyfile=folder / "broker.key",
    )
    plugins = ("CertificateAuthentication", "TopicAuthorisation")
    return BrokerConfig(
        listeners={"default": listener}, plugins={f"coordinator.broker.plugins.{name}": {} for name in plugins}
    )


async def serve(state: Path, config: configuration.Config, stop: asyncio.Event) -> None:
    """Serve until `stop` is set.

    Raises:
        SetupError: the port is taken or the certificates are missing.
    """
    for name in ("amqtt", "transitions"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters of them is raised
    try:
        broker = FleetBroker(broker_config(state, config))
        await broker.start()
    except Exception as error:
        raise SetupError(f"the broker cannot listen on {config.host}:{config.broker_port}: {error}") from error
    logger.info("embedded broker on %s:%d", config.host, config.broker_port)

    def read_revoked() -> None:
        try:
            broker.revoke(pki.revoked_serials((state / "pki" / pki.CRL).read_bytes()))
        except (OSError, ValueError):
            logger.exception("the list of revoked certificates cannot be read; the last one stays in force")

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, read_revoked)
    revoked.note_process(state)
    read_revoked()
    await stop.wait()
    await broker.shutdown()


def run(state: Path) -> int:
    """Run the embedded broker in this process until SIGTERM or SIGINT."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve(state, configuration.load(state), stop)

    asyncio.run(main())
    return 0
