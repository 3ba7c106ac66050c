"""Fetching artifacts to disk, whatever carries the blocks: resumed, checked block by block and as a whole."""

import errno
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from contract import blocks, limits, topics
from contract.messages import BlobRef
from edge_agent.errors import GivenUpError, RefusedError
from edge_agent.partfile import PartFile

_LOG = logging.getLogger(__name__)


class Fill(Protocol):
    """A transport: brings every missing block into a part file."""

    def __call__(self, part: PartFile, give_up: Callable[[], bool]) -> None:
        """Return when the part is complete.

        Raises:
            UnavailableError: no progress in time, or the agent ends.
            GivenUpError: `give_up` said so.
            RefusedError: blocks come that are not the artifact's.
            OSError: the disk does not take it.
        """
        ...


class Artifacts:
    """The folder `staging`, filled by one transport."""

    def __init__(self, staging: Path, fill: Fill) -> None:
        self._staging, self._fill = staging, fill

    def pull(self, blob: BlobRef, *, give_up: Callable[[], bool] = lambda: False) -> Path:
        """Fetch an artifact; the blocks that an earlier call left on disk are not fetched again.

        Args:
            blob: digest, size and digest of its list of blocks, from a source that is trusted.
            give_up: asked between blocks.

        Returns:
            The file, complete and with that digest. The caller deletes it.

        Raises:
            UnavailableError: no progress in time, or the agent ends.
            GivenUpError: `give_up` said so; what came so far is removed.
            RefusedError: too large, or blocks or the whole have another digest than what is trusted says.
            OSError: the disk does not take it; what came so far is removed.
        """
        if not 0 <= blob.size <= limits.ARTIFACT_BYTES:
            raise RefusedError(f"the artifact has {blob.size} bytes, the limit is {limits.ARTIFACT_BYTES}")
        path = self._path(blob.sha256)
        try:
            listed = self._list(blob, give_up)
            digest = self._whole(path, blob, listed, give_up)
        except (OSError, RefusedError, GivenUpError):
            self._forget(blob)
            raise
        if digest != blob.sha256:
            self._forget(blob)
            raise RefusedError(f"the artifact's SHA-256 is {digest[:12]}..., the signed one is {blob.sha256[:12]}...")
        self._path(blob.sha256, "blocks").unlink(missing_ok=True)
        return path

    def begun(self, blob: BlobRef) -> bool:
        """Whether some of an artifact is on disk already."""
        return self._path(blob.sha256).exists()

    def complete(self, blob: BlobRef) -> bool:
        """Whether all of it seems to be on disk already."""
        path = self._path(blob.sha256)
        return path.exists() and path.stat().st_size == blob.size

    def adopt(self, path: Path, blob: BlobRef) -> Path:
        """Take a file that was made here and verified as the artifact."""
        return path.replace(self._path(blob.sha256))

    def _whole(self, path: Path, blob: BlobRef, listed: bytes, give_up: Callable[[], bool]) -> str:
        digest = ""
        for _ in range(2):  # the second time from nothing: the first may have met a broken disk
            part = PartFile(path, blob, listed)
            self._check_room(part)
            if not part.complete:
                self._fill(part, give_up)
            digest = part.digest()
            if digest == blob.sha256:
                break
            part.remove()
            _LOG.warning("artifact %s came with digest %s", blob.sha256[:12], digest[:12])
        return digest

    def _list(self, blob: BlobRef, give_up: Callable[[], bool]) -> bytes:
        """The digests of the blocks; of a single block it is the artifact's own."""
        topics.check_sha256(blob.sha256)
        if blocks.count(blob.size) < 2:
            return bytes.fromhex(blob.sha256) if blob.size else b""
        if not blob.blocks:
            return b""
        inlined = blocks.inlined(blob.blocks, blob.size)
        if inlined is not None:
            return inlined
        size = blocks.DIGEST_BYTES * blocks.count(blob.size)
        part = PartFile(
            self._path(blob.sha256, "blocks"),
            BlobRef(blob.blocks, size),
            bytes.fromhex(topics.check_sha256(blob.blocks)),
        )
        if not part.complete:
            self._fill(part, give_up)
        return part.path.read_bytes()

    def _check_room(self, part: PartFile) -> None:
        free = shutil.disk_usage(self._staging).free
        if free < part.left:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {part.left} bytes are to come, {free} are free")

    def _forget(self, blob: BlobRef) -> None:
        for path in (self._path(blob.sha256), self._path(blob.sha256, "blocks")):
            with suppress(OSError):
                path.unlink()

    def _path(self, sha256: str, kind: str = "part") -> Path:
        return self._staging / f"{topics.check_sha256(sha256)}.{kind}"
