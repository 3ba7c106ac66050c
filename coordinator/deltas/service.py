"""Patches between signed bundles: made once, by a thread of its own, when the first device asks; answered when made."""

import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy import Connection, or_, select

from contract import blocks, delta, topics
from contract.errors import TopicError
from contract.messages import BlobRef, DeltaReply, DeltaRequest
from coordinator.deltas.alignment import align
from coordinator.deltas.tables import patches
from coordinator.errors import NotFoundError
from coordinator.registry.tables import bundles
from coordinator.signing.service import Signing
from coordinator.sql import insert_once
from coordinator.storage import Storage

MAKE_BYTES = 32 * 1024 * 1024  # of a bundle; a larger one takes too long to compare and goes whole
QUEUED = 64  # pairs that wait to be made; who asks for more gets the whole
INLINE_BLOCKS = 16  # of a patch whose list goes with the answer
WORTH = 0.95  # a patch must be smaller than this share of the whole

logger = logging.getLogger(__name__)


class Deltas:
    """`ask` and `ready` belong to the gateway, `tick` to the thread that makes patches."""

    def __init__(self, storage: Storage, signing: Signing, *, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._blobs, self._signing, self._clock = storage.engine, storage.blobs, signing, clock
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, str], set[str]] = {}  # devices by base and target, in order
        self._ready: list[tuple[str, DeltaReply]] = []

    def ask(self, connection: Connection, device: str, request: DeltaRequest) -> DeltaReply | None:
        """The answer, if it is known; None where the patch must be made first: then `ready` has it.

        A pair that may have no patch is answered with none: not both signed, of two models, or too large.
        """
        pair = request.base, request.target
        allowed = self._may(connection, pair)
        query = select(patches).where(patches.c.base_sha256 == pair[0], patches.c.target_sha256 == pair[1])
        found = connection.execute(query).first() if allowed else None
        if found is not None:
            blob = self._listed(BlobRef(found.sha256, found.size, found.blocks)) if found.sha256 else None
            return DeltaReply(base=request.base, target=request.target, blob=blob)
        with self._lock:
            full = pair not in self._waiting and len(self._waiting) >= QUEUED
            if allowed and not full:
                self._waiting.setdefault(pair, set()).add(device)
                return None
        return DeltaReply(base=request.base, target=request.target, blob=None)

    def _may(self, connection: Connection, pair: tuple[str, str]) -> bool:
        wanted = {sha256 for sha256 in pair if sha256}
        try:
            for sha256 in wanted:
                topics.check_sha256(sha256)
        except TopicError:
            return False
        query = select(bundles.c.model, bundles.c.size).where(bundles.c.sha256.in_(wanted))
        rows = connection.execute(query).all()
        if len(rows) != len(wanted) or len({row.model for row in rows}) != 1 or pair[0] == pair[1] or not pair[1]:
            return False
        small = all(row.size <= MAKE_BYTES for row in rows)
        return small and all(self._signing.is_signed(connection, sha256) for sha256 in wanted)

    def may_fetch(self, connection: Connection, sha256: str) -> bool:
        """Whether this is a patch, or the list of its blocks."""
        query = select(patches.c.target_sha256).where(or_(patches.c.sha256 == sha256, patches.c.blocks == sha256))
        return connection.execute(query.limit(1)).first() is not None

    def ready(self) -> list[tuple[str, DeltaReply]]:
        """Take the answers for devices that waited."""
        with self._lock:
            taken, self._ready = self._ready, []
        return taken

    def tick(self, now: float) -> None:
        """Make the patch that was asked for first, if any; devices get an answer also where it failed."""
        with self._lock:
            pair = next(iter(self._waiting), None)
        if pair is None:
            return
        blob: BlobRef | None = None
        try:
            blob = self._make(pair, now)
        finally:
            with self._lock:
                devices = self._waiting.pop(pair)
                reply = DeltaReply(base=pair[0], target=pair[1], blob=self._listed(blob) if blob else None)
                self._ready += [(device, reply) for device in sorted(devices)]

    def _listed(self, blob: BlobRef) -> BlobRef:
        """The patch with its list in place of the list's digest, where that is short."""
        if not 1 < blocks.count(blob.size) <= INLINE_BLOCKS:
            return blob
        return BlobRef(blob.sha256, blob.size, blocks.inline(self._blobs.get(blob.blocks)))

    def _make(self, pair: tuple[str, str], now: float) -> BlobRef | None:
        started = self._clock()
        try:
            base, target = (self._blobs.get(sha256) if sha256 else b"" for sha256 in pair)
        except NotFoundError as error:
            logger.warning("no patch can be made: %s", error)
            return None
        patch = delta.make(base, target, align)
        worth = len(patch) < WORTH * len(target)
        blob = self._blobs.put_artifact(patch) if worth else None
        row = {"sha256": blob.sha256, "size": blob.size, "blocks": blob.blocks} if blob else {}
        row = {"sha256": "", "size": len(patch), "blocks": "", **row, "created_at": now}
        with self._engine.begin() as connection:
            insert_once(connection, patches, {"base_sha256": pair[0], "target_sha256": pair[1], **row})
        logger.info(
            "patch %s to %s: %d of %d bytes in %.1f s",
            pair[0][:12] or "from nothing",
            pair[1][:12],
            len(patch),
            len(target),
            self._clock() - started,
        )
        return blob
