"""An artifact on its way: blocks in any order are written at their place, and what is on disk is not asked for again.

Nothing beside the file says which blocks are there: each is compared with the list of digests when a pull is resumed.
A bitmap would have to be flushed to the disk after every block to be true after a power loss; a digest is always true.
"""

import hashlib
from contextlib import suppress
from pathlib import Path

from contract import blocks, limits
from contract.messages import BlobRef


class PartFile:
    """A file of blocks.

    Attributes:
        blob: what it shall become.
        rejected: blocks that came with another digest than the list's.
    """

    def __init__(self, path: Path, blob: BlobRef, listed: bytes = b"") -> None:
        """Resume with the blocks on disk that the list confirms; without a list, begin with nothing.

        Raises:
            OSError: the disk does not take it.
        """
        self.blob = blob
        self.path = path
        self.rejected = 0
        self._listed = blocks.check(listed, blob.size) if listed else b""
        self._count = blocks.count(blob.size)
        self._there = bytearray(self._count)
        self._first = 0  # no block before it is missing
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._resume()
        except PermissionError:
            path.unlink()
            self._resume()

    def _resume(self) -> None:
        self.path.touch(mode=0o600)
        with self.path.open("r+b") as file:
            file.truncate(min(self.path.stat().st_size, self.blob.size) if self._listed else 0)
            for index in range(self._count if self._listed else 0):
                data = file.read(limits.BLOCK_BYTES)
                if not data:
                    break
                if blocks.matches(self._listed, index, data):
                    self._mark(index)

    def _mark(self, index: int) -> None:
        self._there[index] = 1
        while self._first < self._count and self._there[self._first]:
            self._first += 1

    @property
    def complete(self) -> bool:
        """Every block is on disk."""
        return self._first == self._count

    @property
    def left(self) -> int:
        """Bytes that are missing."""
        return sum(
            blocks.length(self.blob.size, index) for index in range(self._first, self._count) if self.lacks(index)
        )

    def lacks(self, index: int) -> bool:
        """Whether this block is still to come."""
        return 0 <= index < self._count and not self._there[index]

    def missing(self, most: int) -> list[int]:
        """The first blocks to come, at most so many."""
        found: list[int] = []
        for index in range(self._first, self._count):
            if len(found) >= most:
                break
            if not self._there[index]:
                found.append(index)
        return found

    def gap(self) -> tuple[int, int]:
        """The first block to come, and the one after the last that is missing in a row with it."""
        after = self._there.find(1, self._first)
        return self._first, after if after >= 0 else self._count

    def accept(self, index: int, data: bytes) -> bool:
        """Write a block to its place; False where it is not awaited or not what the list names.

        Raises:
            OSError: the disk does not take it.
        """
        if not self.lacks(index):
            return False
        expected = blocks.length(self.blob.size, index)
        if len(data) != expected or (self._listed and not blocks.matches(self._listed, index, data)):
            self.rejected += 1
            return False
        with self.path.open("r+b") as file:
            file.seek(index * limits.BLOCK_BYTES)
            file.write(data)
        self._mark(index)
        return True

    def digest(self) -> str:
        """SHA-256 of the file, lower-case hex."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def remove(self) -> None:
        """Give the disk back."""
        with suppress(OSError):
            self.path.unlink()
