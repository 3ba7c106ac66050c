"""Bytes to messages and back: a size check, then a typed decode, nothing else.

MessagePack for everything that flows; JSON for retained state, so that `mosquitto_sub` shows it to a person.
Unknown fields are ignored (old readers survive new writers); unknown types are refused.
"""

import zlib
from typing import TypeVar

import msgspec

from contract import limits
from contract.errors import MalformedError, TooLargeError

T = TypeVar("T")

_pack = msgspec.msgpack.Encoder()
_json = msgspec.json.Encoder(order="deterministic")


def check_size(payload: bytes, limit: int, what: str) -> None:
    """Raise TooLargeError if `payload` has more than `limit` bytes."""
    if len(payload) > limit:
        raise TooLargeError(what, size=len(payload), limit=limit)


def encode(message: object) -> bytes:
    """MessagePack bytes of a message."""
    return _pack.encode(message)


def encode_json(message: object) -> bytes:
    """JSON bytes of a message, keys sorted: the same message always gives the same bytes."""
    return _json.encode(message)


def decode(payload: bytes, kind: type[T], *, limit: int = limits.MESSAGE_BYTES) -> T:
    """Decode MessagePack.

    Raises:
        TooLargeError: longer than `limit` bytes; nothing was decoded.
        MalformedError: not MessagePack, or not of type `kind`.
    """
    check_size(payload, limit, f"a {_name(kind)} message")
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise MalformedError(f"not a {_name(kind)} message: {error}") from error


def decode_json(payload: bytes, kind: type[T], *, limit: int = limits.CONTROL_BYTES) -> T:
    """Decode JSON; errors as in `decode`."""
    check_size(payload, limit, f"a {_name(kind)} message")
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise MalformedError(f"not a {_name(kind)} message: {error}") from error


def deflate(content: bytes) -> bytes:
    """Content in zlib's format."""
    return zlib.compress(content, 6)


def inflate(packed: bytes, *, limit: int, what: str) -> bytes:
    """Undo `deflate`, never making more than `limit` bytes.

    Raises:
        TooLargeError: it would be more.
        MalformedError: not zlib's format, or cut short.
    """
    reader = zlib.decompressobj()
    try:
        content = reader.decompress(packed, limit + 1)
    except zlib.error as error:
        raise MalformedError(f"{what} cannot be unpacked: {error}") from error
    check_size(content, limit, what)
    if not reader.eof or reader.unused_data:
        raise MalformedError(f"{what} is cut short, or more follows it")
    return content


def _name(kind: object) -> str:
    return getattr(kind, "__name__", str(kind))
