"""One MQTT packet off a stream, bounded before it is read and decoded by amqtt's codecs.

amqtt's own reader trusts the announced length (up to 256 MB) and can spin on a body that is shorter than its
fields say; here the whole body is read first, and running past its end is an error.
"""

import asyncio
from struct import error as StructError  # noqa: N812 - a class, whatever its name looks like
from typing import Any

from amqtt.adapters import ReaderAdapter
from amqtt.errors import AMQTTError, CodecError, MQTTError, NoDataError
from amqtt.mqtt import packet_class
from amqtt.mqtt.packet import MQTTFixedHeader

from contract import limits

PACKET_BYTES = limits.MESSAGE_BYTES + 1024  # a payload, its topic and headers
MQTT_3_1_1 = 4
_CONNECT, _MQTT = 1, b"\x00\x04MQTT"
Packet = Any  # amqtt carries no types that a checker could use


class PacketError(Exception):
    """The client broke the protocol: the connection must be closed."""


class VersionError(PacketError):
    """A CONNECT of another version than MQTT 3.1.1, whose fields only that version's reader knows."""


class _Body(ReaderAdapter):
    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    async def read(self, n: int = -1) -> bytes:
        end = len(self._content) if n < 0 else self._at + n
        if end > len(self._content):
            raise MQTTError("a field runs past the end of its packet")
        chunk = self._content[self._at : end]
        self._at = end
        return chunk

    def feed_eof(self) -> None:
        return


async def read(reader: asyncio.StreamReader) -> Packet | None:
    """Read one packet; None when the client closed the stream between packets.

    Raises:
        PacketError: too large, or it cannot be decoded.
        VersionError: a CONNECT of another version.
        asyncio.IncompleteReadError: the stream ended inside a packet.
    """
    first = await reader.read(1)
    if not first:
        return None
    length = await _remaining_length(reader)
    if length > PACKET_BYTES:
        raise PacketError(f"a packet of {length} bytes; at most {PACKET_BYTES}")
    header = MQTTFixedHeader(first[0] >> 4, first[0] & 0x0F, length)
    body = await reader.readexactly(length)
    if header.packet_type == _CONNECT and body.startswith(_MQTT) and body[len(_MQTT) :][:1] != bytes([MQTT_3_1_1]):
        raise VersionError("a protocol version other than MQTT 3.1.1")
    try:
        return await packet_class(header).from_stream(_Body(body), fixed_header=header)
    except (AMQTTError, MQTTError, CodecError, NoDataError, StructError, ValueError, TypeError) as error:
        raise PacketError(f"a packet of type {header.packet_type} that cannot be decoded: {error}") from error


async def _remaining_length(reader: asyncio.StreamReader) -> int:
    value = 0
    for position in range(4):
        byte = (await reader.readexactly(1))[0]
        value |= (byte & 0x7F) << (7 * position)
        if not byte & 0x80:
            return value
    raise PacketError("a packet length of more than four bytes")
