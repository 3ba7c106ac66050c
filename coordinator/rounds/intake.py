"""What devices send back: blocks of updates, and replies.

A reply counts as answered only when the update that it names has come whole from that very device; the two may
arrive in any order.
"""

import hashlib
import math

from sqlalchemy import Connection, delete, func, insert, select, update

from contract import codec, limits, topics
from contract.messages import RoundReply, UploadBlock
from coordinator.errors import ConflictError, DeniedError, InvalidError, NotFoundError
from coordinator.rounds.tables import instructions, updates, uploads
from coordinator.storage import Blobs

_SLACK_BYTES = 64 * 1024  # an update has the shape of the weights that were sent; its header may differ a little
_UPDATES = 3  # one, and more where a device was killed and trained again
_WAITING = ("queued", "sent")


def on_upload_block(connection: Connection, blobs: Blobs, device: str, body: UploadBlock, now: float) -> None:
    """Keep one block of an update; the last one makes it a blob.

    Raises:
        InvalidError: a block that does not fit its blob, or an update that is larger than the weights sent.
        DeniedError: the device has no training instruction to answer, or has sent enough.
    """
    _check_block(body)
    sha256 = topics.check_sha256(body.blob.sha256)
    if _has_update(connection, device, sha256):
        return
    allowed = _allowed_bytes(connection, device, now)
    if body.blob.size > allowed:
        raise InvalidError(f"{device}: an update of {body.blob.size} bytes, at most {allowed} were asked for")
    # One update at a time: what a device abandoned (it was killed and trained again) must not pile up.
    connection.execute(delete(uploads).where(uploads.c.device == device, uploads.c.sha256 != sha256))
    _keep(connection, device, body)
    kept = select(func.count()).select_from(uploads).where(uploads.c.device == device, uploads.c.sha256 == sha256)
    if connection.execute(kept).scalar_one() == body.count:
        _complete(connection, blobs, device, sha256, now)


def on_round_reply(connection: Connection, device: str, body: RoundReply, now: float) -> None:
    """Keep a reply; a second one to the same instruction changes nothing.

    Raises:
        NotFoundError: no such instruction.
        DeniedError: it is another device's.
        ConflictError: it came too late.
        InvalidError: a reply that says neither result nor error.
    """
    query = select(instructions).where(instructions.c.id == body.instruction)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise NotFoundError(f"{device} answers an instruction that was never given: {body.instruction[:80]!r}")
    if row["device"] != device:
        raise DeniedError(f"{device} answers an instruction of another device")
    if row["reply"] is not None:
        return
    if row["state"] == "expired" or row["expires_at"] <= now:
        raise ConflictError(f"{device}: instruction {body.instruction} has expired")
    if not body.error and row["kind"] == "train" and body.weights is None:
        raise InvalidError(f"{device}: a reply to `train` needs weights or an error")
    sha256 = None if body.weights is None or body.error else topics.check_sha256(body.weights.sha256)
    whole = sha256 is None or _has_update(connection, device, sha256)
    values = {"reply": codec.encode(body), "weights_sha256": sha256, "error": body.error[:2000]}
    state = {"state": "answered", "answered_at": now} if whole else {"state": "sent"}
    connection.execute(update(instructions).where(instructions.c.id == body.instruction).values(**values, **state))


def _check_block(body: UploadBlock) -> None:
    size = body.blob.size
    if not 0 < size <= limits.ARTIFACT_BYTES or body.count != math.ceil(size / limits.BLOCK_BYTES):
        raise InvalidError(f"an update of {size} bytes does not come in {body.count} blocks")
    if not 0 <= body.index < body.count:
        raise InvalidError(f"block {body.index} of {body.count}")
    expected = min(limits.BLOCK_BYTES, size - body.index * limits.BLOCK_BYTES)
    if len(body.data) != expected:
        raise InvalidError(f"block {body.index} has {len(body.data)} bytes, expected {expected}")


def _has_update(connection: Connection, device: str, sha256: str) -> bool:
    query = select(updates.c.device).where(updates.c.device == device, updates.c.sha256 == sha256)
    return connection.execute(query).first() is not None


def _allowed_bytes(connection: Connection, device: str, now: float) -> int:
    query = select(func.max(instructions.c.input_size), func.min(instructions.c.sent_at)).where(
        instructions.c.device == device,
        instructions.c.kind == "train",
        instructions.c.state.in_(_WAITING),
        instructions.c.expires_at > now,
    )
    size, asked_at = connection.execute(query).one()
    if size is None:
        raise DeniedError(f"{device} sends an update that nobody waits for")
    mine = updates.c.device == device, updates.c.received_at >= (now if asked_at is None else asked_at)
    sent = connection.execute(select(func.count()).select_from(updates).where(*mine)).scalar_one()
    if sent >= _UPDATES:
        raise DeniedError(f"{device} has sent {sent} updates since it was asked for one")
    return int(size) + _SLACK_BYTES


def _keep(connection: Connection, device: str, body: UploadBlock) -> None:
    key = {"device": device, "sha256": body.blob.sha256, "block": body.index}
    query = select(uploads.c.size).where(*(uploads.c[name] == value for name, value in key.items()))
    if connection.execute(query).first() is None:
        connection.execute(insert(uploads).values(**key, count=body.count, size=body.blob.size, data=body.data))


def _complete(connection: Connection, blobs: Blobs, device: str, sha256: str, now: float) -> None:
    mine = (uploads.c.device == device, uploads.c.sha256 == sha256)
    rows = connection.execute(select(uploads.c.data).where(*mine).order_by(uploads.c.block)).scalars()
    data = b"".join(rows)
    connection.execute(delete(uploads).where(*mine))
    waiting = (
        instructions.c.device == device,
        instructions.c.weights_sha256 == sha256,
        instructions.c.state == "sent",
        instructions.c.reply.is_not(None),
    )
    if hashlib.sha256(data).hexdigest() != sha256:
        # Not raised: that would roll back the deletion above, and the broken blocks would stay for ever.
        values = {"state": "answered", "answered_at": now, "error": "the update does not have the digest it claims"}
        connection.execute(update(instructions).where(*waiting).values(**values))
        return
    blobs.put(data)
    connection.execute(insert(updates).values(device=device, sha256=sha256, received_at=now))
    connection.execute(update(instructions).where(*waiting).values(state="answered", answered_at=now))
