"""One client's connection to the embedded broker: a reader, a writer, and the end of it.

It answers packets; what they mean for other clients is the broker's (the `Hub`).
"""

import asyncio
import logging
from typing import Any, Protocol

from amqtt.mqtt.connack import NOT_AUTHORIZED, UNACCEPTABLE_PROTOCOL_VERSION, ConnackPacket
from amqtt.mqtt.connect import ConnectPacket
from amqtt.mqtt.disconnect import DisconnectPacket
from amqtt.mqtt.pingreq import PingReqPacket
from amqtt.mqtt.pingresp import PingRespPacket
from amqtt.mqtt.puback import PubackPacket
from amqtt.mqtt.pubcomp import PubcompPacket
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.pubrec import PubrecPacket
from amqtt.mqtt.pubrel import PubrelPacket
from amqtt.mqtt.suback import SubackPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsuback import UnsubackPacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket

from contract import limits
from coordinator.broker import packets
from coordinator.broker.session import ClientSession, Message

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0
REFUSED = 0x80


class Hub(Protocol):
    """What a connection asks of its broker."""

    async def admit(self, connect: ConnectPacket, tls: Any) -> bool:
        """Whether this client may be who it says it is."""
        ...

    def attach(self, connection: "Connection") -> tuple[ClientSession, bool]:
        """Give the connection its session, ending an older connection; the flag says that the session was there."""
        ...

    def detach(self, connection: "Connection") -> None:
        """The connection is over; a newer one may already have taken the session."""
        ...

    async def publish(self, session: ClientSession, message: Message) -> None:
        """Deliver a client's message to whom it may concern, if the client may publish there."""
        ...

    async def subscribe(self, session: ClientSession, topic_filter: str, qos: int) -> int:
        """Subscribe; the granted quality of service, or REFUSED."""
        ...

    def retained(self, session: ClientSession, topic_filter: str, qos: int) -> None:
        """Queue the retained messages that a new subscription matches."""
        ...


class Connection:
    """Serve one client until either side ends it."""

    def __init__(self, hub: Hub, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._hub = hub
        self._reader = reader
        self._writer = writer
        self._replies: list[bytes] = []
        self._wake = asyncio.Event()
        self._clean_end = False
        self._cut = False
        self.connect: ConnectPacket
        self.session: ClientSession

    @property
    def tls(self) -> Any:
        """The `ssl.SSLObject` of the connection."""
        return self._writer.get_extra_info("ssl_object")

    def wake(self) -> None:
        """Something waits to be sent."""
        self._wake.set()

    def abort(self) -> None:
        """Cut the connection now; nothing is taken from the session any more, which may have a new connection."""
        self._cut = True
        self._writer.transport.abort()

    async def serve(self) -> None:
        """Run until the connection ends, for whatever reason; never raises for what a client does."""
        try:
            if await self._open():
                await self._exchange()
        except packets.PacketError as error:
            logger.warning("connection of %s closed: %s", self._who(), error)
        except (asyncio.IncompleteReadError, OSError):  # also TimeoutError: no sign of life
            logger.debug("connection of %s lost", self._who())
        finally:
            await self._close()

    async def _open(self) -> bool:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connect = await packets.read(self._reader)
        except packets.VersionError:
            await self._write(ConnackPacket.build(0, UNACCEPTABLE_PROTOCOL_VERSION).to_bytes())
            return False
        if not isinstance(connect, ConnectPacket) or connect.proto_name != "MQTT" or connect.variable_header is None:
            return False
        if not await self._hub.admit(connect, self.tls):
            await self._write(ConnackPacket.build(0, NOT_AUTHORIZED).to_bytes())
            return False
        self.connect = connect
        self.session, present = self._hub.attach(self)
        await self._write(ConnackPacket.build(int(present), 0).to_bytes())
        return True

    async def _exchange(self) -> None:
        sender = asyncio.create_task(self._send())
        keep_alive = self.connect.keep_alive
        silence = 1.5 * keep_alive if keep_alive else None  # MQTT 3.1.1, section 3.1.2.10
        try:
            while True:
                async with asyncio.timeout(silence):
                    packet = await packets.read(self._reader)
                if packet is None or isinstance(packet, DisconnectPacket):
                    self._clean_end = packet is not None
                    return
                await self._answer(packet)
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _answer(self, packet: packets.Packet) -> None:
        match packet:
            case PublishPacket():
                await self._published(packet)
            case PubackPacket():
                self.session.acknowledged(packet.packet_id)
                self.wake()
            case PubrelPacket():
                self.session.received.discard(packet.packet_id)
                self._reply(PubcompPacket.build(packet.packet_id))
            case SubscribePacket():
                await self._subscribed(packet)
            case UnsubscribePacket():
                for topic_filter in packet.payload.topics:
                    self.session.subscriptions.pop(topic_filter, None)
                self._reply(UnsubackPacket.build(packet.variable_header.packet_id))
            case PingReqPacket():
                self._reply(PingRespPacket.build())
            case _:
                raise packets.PacketError(f"unexpected {type(packet).__name__}")

    async def _published(self, packet: PublishPacket) -> None:
        topic, data, qos = packet.topic_name or "", packet.data or b"", packet.qos
        if qos not in (0, 1, 2) or not topic:
            raise packets.PacketError("a PUBLISH without topic or with an unknown quality of service")
        if len(data) > limits.MESSAGE_BYTES:
            raise packets.PacketError(f"a payload of {len(data)} bytes; at most {limits.MESSAGE_BYTES}")
        if qos < 2 or packet.packet_id not in self.session.received:
            await self._hub.publish(self.session, Message(topic, data, qos, retain=packet.retain_flag))
        if qos == 1:
            self._reply(PubackPacket.build(packet.packet_id))
        elif qos == 2:
            self.session.received.add(packet.packet_id)
            self._reply(PubrecPacket.build(packet.packet_id))

    async def _subscribed(self, packet: SubscribePacket) -> None:
        asked = packet.payload.topics
        granted = [await self._hub.subscribe(self.session, topic_filter, qos) for topic_filter, qos in asked]
        self._reply(SubackPacket.build(packet.variable_header.packet_id, granted))
        for (topic_filter, _), qos in zip(asked, granted, strict=True):
            if qos != REFUSED:
                self._hub.retained(self.session, topic_filter, qos)

    def _reply(self, packet: packets.Packet) -> None:
        self._replies.append(packet.to_bytes())
        self.wake()

    async def _send(self) -> None:
        """Write replies first, then messages, as fast as the client reads them."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._replies:
                    replies, self._replies = self._replies, []
                    await self._write(b"".join(replies))
                while not self._cut and (delivery := self.session.next()) is not None:
                    packet_id, message = delivery
                    packet = PublishPacket.build(
                        message.topic, message.data, packet_id, message.dup, message.qos, message.retain
                    )
                    await self._write(packet.to_bytes())
                    if self._replies:
                        break
                if self._replies:
                    self.wake()
        except OSError:
            self.abort()  # the reader notices and ends the connection

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def _close(self) -> None:
        if hasattr(self, "session"):
            self._hub.detach(self)
            if not self._clean_end and self.connect.will_flag:
                await self._last_will()
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self.abort()

    async def _last_will(self) -> None:
        topic, data = self.connect.will_topic, self.connect.will_message
        if topic and data is not None:
            will = Message(topic, bytes(data), self.connect.will_qos, retain=self.connect.will_retain_flag)
            await self._hub.publish(self.session, will)

    def _who(self) -> str:
        return self.session.client_id if hasattr(self, "session") else "an unknown client"
