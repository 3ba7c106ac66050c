"""An artifact in blocks of `limits.BLOCK_BYTES`, and the list that names each block by its SHA-256.

The list is the digests one after another, 32 bytes each, and itself content-addressed. Its own digest travels with the
artifact's in what is trusted (signed TUF `custom`, or an instruction), so that each block is checked as it comes.
"""

import hashlib

from contract import limits
from contract.errors import MalformedError

DIGEST_BYTES = 32


def count(size: int) -> int:
    """Blocks of an artifact of `size` bytes."""
    return -(-size // limits.BLOCK_BYTES)


def length(size: int, index: int) -> int:
    """Bytes of block `index` of an artifact of `size` bytes; the last one is shorter."""
    return max(0, min(limits.BLOCK_BYTES, size - index * limits.BLOCK_BYTES))


def digests(data: bytes) -> bytes:
    """The list of an artifact; of the largest one it has 64 KiB and fits into one block."""
    view = memoryview(data)
    starts = range(0, len(data), limits.BLOCK_BYTES)
    return b"".join(hashlib.sha256(view[start : start + limits.BLOCK_BYTES]).digest() for start in starts)


def list_digest(data: bytes) -> str | None:
    """SHA-256 of an artifact's list, lower-case hex; None where it is a single block, which needs no list."""
    return hashlib.sha256(digests(data)).hexdigest() if count(len(data)) > 1 else None


def inline(listed: bytes) -> str:
    """A short list as text, which may travel in place of its digest and spares its reader a round trip."""
    return listed.hex()


def inlined(text: str, size: int) -> bytes | None:
    """The list of an artifact of `size` bytes, if the text is one and no digest of one.

    Raises:
        MalformedError: no hexadecimal digits.
    """
    if count(size) < 2 or len(text) != 2 * DIGEST_BYTES * count(size):
        return None
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise MalformedError("a list of blocks that is not hexadecimal") from error


def check(listed: bytes, size: int) -> bytes:
    """Return a list if it names every block of an artifact of `size` bytes.

    Raises:
        MalformedError: it has another length.
    """
    if len(listed) != DIGEST_BYTES * count(size):
        raise MalformedError(f"a list of {len(listed)} bytes cannot name the {count(size)} blocks of {size} bytes")
    return listed


def matches(listed: bytes, index: int, data: bytes) -> bool:
    """Whether these bytes are block `index` of the list's artifact."""
    return hashlib.sha256(data).digest() == listed[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
