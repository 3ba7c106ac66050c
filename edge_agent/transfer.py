"""Asking the coordinator for artifacts and waiting for them, in blocks that survive a kill.

An artifact grows in order in `staging/<sha256>.part`: what is on disk is what need not be asked for again.
"""

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from contract import limits, topics
from contract.messages import BlobRef, BlockRequest
from edge_agent.errors import RefusedError, UnavailableError
from edge_agent.session import Link

Blocks = queue.Queue[tuple[int, bytes]]

_LOG = logging.getLogger(__name__)
_WINDOW = 8  # blocks asked for at a time, and at most held in memory ahead of the file
_POLL_S = 0.25  # how soon a waiting request notices that the agent ends


class PartFile:
    """An artifact on its way: blocks in any order go in, a file in order grows.

    Attributes:
        blob: what it shall become.
    """

    def __init__(self, path: Path, blob: BlobRef) -> None:
        """Resume at the last whole block on disk."""
        self.blob = blob
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        size = path.stat().st_size
        whole = size if size == blob.size else min(size, blob.size) // limits.BLOCK_BYTES * limits.BLOCK_BYTES
        with path.open("r+b") as file:
            file.truncate(whole)
        self._count = -(-blob.size // limits.BLOCK_BYTES)
        self._next = -(-whole // limits.BLOCK_BYTES)
        self._ahead: dict[int, bytes] = {}

    @property
    def complete(self) -> bool:
        """Every block is on disk."""
        return self._next >= self._count

    def missing(self) -> list[int]:
        """The next blocks to ask for."""
        stop = min(self._next + _WINDOW, self._count)
        return [index for index in range(self._next, stop) if index not in self._ahead]

    def accept(self, index: int, data: bytes) -> bool:
        """Take a block; False where it is not awaited or has the wrong size."""
        last = self._count - 1
        size = self.blob.size - last * limits.BLOCK_BYTES if index == last else limits.BLOCK_BYTES
        if index not in self.missing() or len(data) != size:
            return False
        self._ahead[index] = data
        with self.path.open("ab") as file:
            while self._next in self._ahead:
                file.write(self._ahead.pop(self._next))
                self._next += 1
        return True

    def digest(self) -> str:
        """SHA-256 of the file, lower-case hex."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class Transfer:
    """Requests that wait for their answers. `accept_*` are called by the thread that reads the session's inbox."""

    def __init__(
        self,
        link: Link,
        staging: Path,
        *,
        retry_s: float = 5.0,
        patience_s: float = 60.0,
        stopping: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            link: the session.
            staging: folder of `.part` files.
            retry_s: seconds without an answer after which a request is sent again.
            patience_s: seconds without progress after which a request is given up.
            stopping: set when the agent ends.
            clock: monotonic seconds.
        """
        self._link = link
        self._staging = staging
        self._retry_s, self._patience_s = retry_s, patience_s
        self._stopping, self._clock = stopping, clock
        self._lock = threading.Lock()
        self._blocks: dict[str, tuple[PartFile, Blocks]] = {}

    def accept_block(self, sha256: str, index: int, data: bytes) -> None:
        """A block of an artifact; where nobody waits for it, a forgotten subscription is ended."""
        with self._lock:
            waiting = self._blocks.get(sha256)
        if waiting is not None:
            part, blocks = waiting
            if index in part.missing():  # other devices ask for other blocks, and all come to all
                with suppress(queue.Full):  # faster than the disk; it is asked for again
                    blocks.put_nowait((index, data))
        else:
            self._link.unsubscribe(topics.all_blocks(sha256))

    def pull(self, blob: BlobRef, *, give_up: Callable[[], bool] = lambda: False) -> Path:
        """Fetch an artifact; what an earlier call left on disk is not fetched again.

        Args:
            blob: digest and size, from a source that is trusted.
            give_up: asked between blocks; what came so far is removed then.

        Returns:
            The file, complete and with that digest. The caller deletes it.

        Raises:
            UnavailableError: no progress in time, the agent ends, or `give_up` said so.
            RefusedError: too large, or the content has another digest, twice.
            OSError: the disk does not take it; what came so far is removed.
        """
        if not 0 <= blob.size <= limits.ARTIFACT_BYTES:
            raise RefusedError(f"the artifact has {blob.size} bytes, the limit is {limits.ARTIFACT_BYTES}")
        path = self._staging / f"{topics.check_sha256(blob.sha256)}.part"
        digest = ""
        for _ in range(2):  # the second time from nothing: the first may have met a broken disk
            part = PartFile(path, blob)
            try:
                self._fill(part, give_up)
                digest = part.digest()
            except (OSError, UnavailableError) as error:
                if isinstance(error, OSError) or give_up():
                    path.unlink(missing_ok=True)
                raise
            if digest == blob.sha256:
                return path
            path.unlink()
            _LOG.warning("artifact %s came with digest %s", blob.sha256[:12], digest[:12])
        raise RefusedError(f"the artifact's SHA-256 is {digest[:12]}..., the signed one is {blob.sha256[:12]}...")

    def _fill(self, part: PartFile, give_up: Callable[[], bool]) -> None:
        if part.complete:
            return
        blocks: Blocks = queue.Queue(2 * _WINDOW)
        pattern = topics.all_blocks(part.blob.sha256)
        with self._lock:
            self._blocks[part.blob.sha256] = part, blocks
        self._link.subscribe(pattern)
        try:
            self._ask(part, blocks, give_up)
        finally:
            with self._lock:
                del self._blocks[part.blob.sha256]
            self._link.unsubscribe(pattern)

    def _ask(self, part: PartFile, blocks: Blocks, give_up: Callable[[], bool]) -> None:
        progress = asked_at = self._clock()
        asked: set[int] = set()
        while not part.complete:
            if self._stopping.is_set() or give_up() or self._clock() - progress > self._patience_s:
                raise UnavailableError(f"artifact {part.blob.sha256[:12]} did not come; it will be resumed")
            missing = part.missing()
            due = not asked.intersection(missing) or self._clock() - asked_at >= self._retry_s
            if due and self._link.send(BlockRequest(sha256=part.blob.sha256, blocks=missing)):
                asked, asked_at = set(missing), self._clock()
            with suppress(queue.Empty):
                if part.accept(*blocks.get(timeout=_POLL_S)):
                    progress = self._clock()
