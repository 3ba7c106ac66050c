"""Patches between two artifacts: what the new one has in common with the old one is not sent again.

A patch is a header's length (4 bytes, big-endian), the header (MessagePack), and one raw LZMA2 stream. The header is
a list of pieces, each at most `PIECE_BYTES`, which one after another are the artifact. A piece is

    copied      from a place in the base,
    new         its bytes come from the stream, or
    a change    its words minus those at a place in the base, modulo their width, zig-zagged so that small changes of
                either sign are small numbers, come from the stream.

Words of more than one byte come byte plane by byte plane: the high bytes of weights resemble each other, the low ones
nothing. After one round of fine-tuning an int8 model's patch has about a tenth of its size, a float model's a third.

A patch from nothing (an empty base) is the artifact compressed. Nobody signs a patch: who applies one checks the
SHA-256 of the result. Memory while applying is bounded by a few pieces and the dictionary, whatever the patch says.
"""

import io
import lzma
import struct
import zipfile
from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from contract import codec
from contract.errors import MalformedError, TooLargeError

PIECE_BYTES = 1 << 20
HEADER_BYTES = 256 * 1024  # thousands of pieces
_DICTIONARY_BYTES = 1 << 20  # what the device keeps while it unpacks; the stream cannot ask for more
_FILTERS: list[dict[str, int]] = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": _DICTIONARY_BYTES}]
_QUICK: list[dict[str, int]] = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": _DICTIONARY_BYTES}]
_SPANS = 10_000  # of a patch; their pieces fit `HEADER_BYTES`
_COPY, _NOTHING = 0, -1
_WIDTHS = (1, 2, 4)  # bytes of int8, float16 and float32

Read = Callable[[int, int], bytes]
"""Offset and length in the base to bytes."""

Span = tuple[int, int, int]
"""Offset in the target, bytes, and offset in the base of what they resemble, -1 for none."""

Align = Callable[[bytes, bytes], Iterator[Span]]
"""Base and target to spans that one after another are the target."""


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """The next bytes of the artifact.

    Attributes:
        size: bytes.
        base: offset in the base, -1 where the piece is new.
        width: bytes of a word, 0 where the piece is copied.
    """

    size: int
    base: int
    width: int


class Header(msgspec.Struct, frozen=True, array_like=True):
    """What a patch makes: `base_size` and `size` in bytes, and the pieces."""

    base_size: int
    size: int
    pieces: list[Piece]


def make(base: bytes, target: bytes, align: Align | None = None) -> bytes:
    """A patch that makes `target` from `base`; from `b""` it is `target` compressed.

    Files of a stored zip are compared with the file of the same name, where both have one length.

    Args:
        base: what the device has, or `b""`.
        target: what it should have.
        align: finds what resembles each other where lengths differ; None sends all of that anew. The patch is made
            both ways, and the smaller one is given.
    """
    spans = list(_spans(base, target))
    patches = [_pack(base, target, spans)]
    if base and align is not None and any(at == _NOTHING for _, _, at in spans):
        aligned = [part for span in spans for part in _aligned(base, target, span, align)]
        patches += [_pack(base, target, aligned)] if len(aligned) <= _SPANS else []
    return min(patches, key=len)


def _aligned(base: bytes, target: bytes, span: Span, align: Align) -> Iterator[Span]:
    start, size, at = span
    if at != _NOTHING:
        yield span
        return
    new = 0  # bytes before `position` that resemble nothing: what follows one another goes as one piece
    position = start
    for offset, length, found in align(base, target[start : start + size]):
        if found == _NOTHING:
            new += length
        else:
            if new:
                yield position - new, new, _NOTHING
            yield start + offset, length, found
            new = 0
        position = start + offset + length
    if new:
        yield position - new, new, _NOTHING


def _pack(base: bytes, target: bytes, spans: list[Span]) -> bytes:
    pieces: list[Piece] = []
    packer = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=_FILTERS)
    payload = []
    for start, size, at in spans:
        for offset in range(0, size, PIECE_BYTES):
            data = target[start + offset : start + min(size, offset + PIECE_BYTES)]
            old = base[at + offset : at + offset + len(data)] if at >= 0 else None
            width, coded = _smallest(data, old)
            pieces.append(Piece(len(data), at + offset if old is not None else _NOTHING, width))
            payload.append(packer.compress(coded))
    payload.append(packer.flush())
    header = codec.encode(Header(len(base), len(target), pieces))
    return struct.pack(">I", len(header)) + header + b"".join(payload)


def apply(patch: bytes, read: Read, *, base_size: int, limit: int) -> Iterator[bytes]:
    """The artifact, piece by piece. The caller checks the SHA-256 of the whole.

    Args:
        patch: from `make`, perhaps broken.
        read: gives bytes of the base.
        base_size: bytes of the base, 0 for none.
        limit: most bytes of the artifact.

    Raises:
        MalformedError: not a patch, or not one for a base of this size.
        TooLargeError: it would make more than `limit` bytes.
    """
    header, payload = _split(patch)
    if header.size > limit:
        raise TooLargeError("a patched artifact", size=header.size, limit=limit)
    _check(header, base_size)
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
    for piece in header.pieces:
        old = read(piece.base, piece.size) if piece.base >= 0 else None
        if old is not None and len(old) != piece.size:
            raise MalformedError(f"the base has no {piece.size} bytes at {piece.base}")
        if piece.width == _COPY:
            yield old or b""
        else:
            yield _decode(_unpack(unpacker, payload, piece.size), old, piece.width)
            payload = b""  # the unpacker has it all
    if header.pieces and not payload and unpacker.unused_data:
        raise MalformedError("bytes after the end of a patch")


def _split(patch: bytes) -> tuple[Header, bytes]:
    if len(patch) < 4:
        raise MalformedError("a patch of less than four bytes")
    (length,) = struct.unpack(">I", patch[:4])
    if length > HEADER_BYTES:
        raise TooLargeError("a patch's header", size=length, limit=HEADER_BYTES)
    return codec.decode(patch[4 : 4 + length], Header, limit=HEADER_BYTES), patch[4 + length :]


def _check(header: Header, base_size: int) -> None:
    if header.base_size != base_size:
        raise MalformedError(f"the patch is for a base of {header.base_size} bytes, this one has {base_size}")
    if sum(piece.size for piece in header.pieces) != header.size:
        raise MalformedError("the pieces of a patch are not as long as what it makes")
    for piece in header.pieces:
        inside = piece.base == _NOTHING or 0 <= piece.base <= base_size - piece.size
        if not (0 < piece.size <= PIECE_BYTES and inside and piece.width in (_COPY, *_WIDTHS)):
            raise MalformedError(f"a patch with a piece that cannot be: {piece}")
        if piece.width == _COPY and piece.base == _NOTHING:
            raise MalformedError("a patch that copies from nowhere")


def _unpack(unpacker: lzma.LZMADecompressor, payload: bytes, size: int) -> bytes:
    try:
        data = unpacker.decompress(payload, size)
        while len(data) < size and not unpacker.eof and not unpacker.needs_input:
            data += unpacker.decompress(b"", size - len(data))
    except (lzma.LZMAError, EOFError) as error:
        raise MalformedError(f"a patch that does not unpack: {error}") from error
    if len(data) != size:
        raise MalformedError("a patch that is cut off")
    return data


def _smallest(data: bytes, old: bytes | None) -> tuple[int, bytes]:
    """Width and coding under which a piece packs best."""
    if data == old:
        return _COPY, b""
    coded = {width: _encode(data, old, width) for width in _WIDTHS}
    best = min(_WIDTHS, key=lambda width: len(lzma.compress(coded[width], lzma.FORMAT_RAW, filters=_QUICK)))
    return best, coded[best]


def _encode(data: bytes, old: bytes | None, width: int) -> bytes:
    whole = len(data) - len(data) % width
    words = np.frombuffer(data[:whole], f"<u{width}")
    if old is not None:
        change = words - np.frombuffer(old[:whole], f"<u{width}")
        sign = np.zeros_like(change) - (change >> (8 * width - 1))
        words = (change << 1) ^ sign
    return words.view(np.uint8).reshape(-1, width).T.tobytes() + data[whole:]


def _decode(coded: bytes, old: bytes | None, width: int) -> bytes:
    whole = len(coded) - len(coded) % width
    planes = np.frombuffer(coded[:whole], np.uint8).reshape(width, -1)
    words = np.ascontiguousarray(planes.T).reshape(-1).view(f"<u{width}")
    if old is not None:
        change = (words >> 1) ^ (np.zeros_like(words) - (words & 1))
        words = np.frombuffer(old[:whole], f"<u{width}") + change
    return words.tobytes() + coded[whole:]


def _spans(base: bytes, target: bytes) -> Iterator[Span]:
    """The target in order, files of one name and length on each other."""
    old = _files(base)
    position = 0
    for name, (start, size) in sorted(_files(target).items(), key=lambda item: item[1]):
        if start < position or name not in old or old[name][1] != size or not size:
            continue
        if start > position:
            yield position, start - position, _NOTHING
        yield start, size, old[name][0]
        position = start + size
    if position < len(target):
        yield position, len(target) - position, _NOTHING


def _files(data: bytes) -> dict[str, tuple[int, int]]:
    """Name to offset and bytes of each stored file of a zip; what is no zip is one file without a name."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            stored = [info for info in archive.infolist() if info.compress_type == zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error, EOFError):
        return {"": (0, len(data))}
    found = {}
    for info in stored:
        lengths = data[info.header_offset + 26 : info.header_offset + 30]  # of name and extra field, APPNOTE 4.3.7
        if len(lengths) == 4:
            start = info.header_offset + 30 + sum(struct.unpack("<HH", lengths))
            if start + info.file_size <= len(data):
                found[info.filename] = (start, info.file_size)
    return found
