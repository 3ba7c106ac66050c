"""Makes inputs from good ones: bytes are flipped, cut and spliced, and values inside become what nobody expects."""

import json
import random
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

_LONGEST = 200_000  # bytes of an input
_WORDS: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**63 - 1, 2**64 - 1, -(2**63), 0.0, -0.0, 1e308, 1e-320, "", "a",
    "\0", "ü😀", "../../etc/passwd", "a" * 5000, b"", b"\xff" * 40, [], {}, [[]], [0] * 300, {"type": "hello"},
]  # fmt: skip
_NOT_JSON: list[Any] = [float("nan"), float("inf"), -float("inf")]
_BYTES = [b"\x00", b"\xff", b"\x7f", b"\x80", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x91" * 600]
_BYTES += [
    b"\xcf" + b"\xff" * 8,
    b"\xcb\x7f\xf8" + b"\0" * 6,
    b"[" * 600,
    b'{"a":' * 300,
    b"\\u0000",
    b"1e999",
    b"/",
    b"-",
]


def mutate(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """One input out of many: mostly a seed that was changed a little, sometimes nothing but noise."""
    draw = rng.random()
    if draw < 0.05:
        return rng.randbytes(rng.choice((0, 1, 4, 40, 400)))
    data = rng.choice(seeds)
    if draw < 0.55:
        data = _inside(data, rng)
    changes = (0, 0, 0, 0, 1, 2) if draw < 0.55 else (1, 1, 2, 4, 8)
    for _ in range(rng.choice(changes)):
        data = _outside(data, seeds, rng)
    return data[:_LONGEST]


def _outside(data: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    at, end = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    other = rng.choice(seeds)
    flipped = bytes([data[at] ^ (1 << rng.randrange(8))]) if at < len(data) else b""
    changes = (
        data[:at] + flipped + data[at + 1 :],
        data[:at] + rng.randbytes(1) + data[at + 1 :],
        data[:at] + rng.choice(_BYTES) + data[at:],
        data[:at] + data[end:],
        data[:end] + data[at:end] + data[end:],
        data[:end],
        data[:at] + other[rng.randint(0, len(other)) :],
        data[:at] + rng.randbytes(rng.randint(1, 8)) + data[end:],
    )
    return rng.choice(changes)


def _inside(data: bytes, rng: random.Random) -> bytes:
    """Change a value inside MessagePack or JSON; anything else stays as it is."""
    try:
        if data[:1] in (b"{", b"["):
            tree = msgspec.json.decode(data)
            return json.dumps(_change(tree, _WORDS + _NOT_JSON, rng), default=str, ensure_ascii=False).encode(
                "utf-8", "surrogatepass"
            )
        tree = msgspec.msgpack.decode(data, strict=False)
        return msgspec.msgpack.encode(_change(tree, _WORDS + _NOT_JSON, rng))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, TypeError, OverflowError):
        return data


def _change(tree: Any, words: Sequence[Any], rng: random.Random) -> Any:
    """A copy of a tree with one node replaced, dropped, doubled or added."""
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        return _change_dict(tree, words, rng)
    if isinstance(tree, list) and tree and rng.random() < 0.9:
        at = rng.randrange(len(tree))
        middle = rng.choice(([], [tree[at]] * 2, [tree[at]] * 70, [tree[at]] * 300, *5 * [None]))
        if middle is None:
            middle = [_change(tree[at], words, rng)]
        return [*tree[:at], *middle, *tree[at + 1 :]]
    if isinstance(tree, int | float) and not isinstance(tree, bool) and rng.random() < 0.5:
        return rng.choice((tree + 1, tree - 1, -tree, tree * 2**20, float(tree), str(tree)))
    if isinstance(tree, str) and tree and rng.random() < 0.5:
        at = rng.randrange(len(tree))
        return tree[:at] + rng.choice(("", "\0", "é", "A", "/", "0" * 70)) + tree[at + 1 :]
    return rng.choice(words)


def _change_dict(tree: dict[Any, Any], words: Sequence[Any], rng: random.Random) -> dict[Any, Any]:
    key = rng.choice(list(tree))
    match rng.randrange(6):
        case 0:
            return {name: value for name, value in tree.items() if name != key}
        case 1:
            return {**tree, rng.choice(("type", "extra", f"{key}x")): rng.choice(words)}
        case _:
            return {**tree, key: _change(tree[key], words, rng)}


def prefixed(seeds: Sequence[bytes], rng: random.Random, form: str) -> bytes:
    """As `mutate`, for bytes whose head is JSON or MessagePack behind its length (struct format `form`)."""
    data = rng.choice(seeds)
    size = struct.calcsize(form)
    (length,) = struct.unpack_from(form, data)
    head, rest = data[size : size + length], data[size + length :]
    if rng.random() < 0.3:
        return mutate(seeds, rng)
    head = _inside(head, rng)
    if rng.random() < 0.2:
        rest = _outside(rest, [rest or b"x"], rng)
    return struct.pack(form, len(head)) + head + rest
