"""The gateway's side of instructions: what to send to whom, and what a device may fetch."""

from collections.abc import Collection

from sqlalchemy import Connection, select, update

from contract import codec, limits
from contract.messages import Instruction
from coordinator.rounds.tables import instructions

_WAITING = ("queued", "sent")


def due(connection: Connection, now: float) -> list[tuple[str, Instruction]]:
    """Instructions that were never sent and can still be followed, by device."""
    query = select(instructions.c.device, instructions.c.message)
    query = query.where(instructions.c.state == "queued", instructions.c.expires_at > now)
    return [(device, _decode(message)) for device, message in connection.execute(query.order_by(instructions.c.id))]


def sent(connection: Connection, ids: Collection[str], now: float) -> None:
    """Note that these instructions were published."""
    query = update(instructions).where(instructions.c.id.in_(ids), instructions.c.state == "queued")
    connection.execute(query.values(state="sent", sent_at=now))


def unanswered(connection: Connection, device: str, now: float) -> list[Instruction]:
    """What a device was sent, has not answered, and can still follow: it is sent again when the device says hello."""
    query = select(instructions.c.message).where(
        instructions.c.device == device,
        instructions.c.state == "sent",
        instructions.c.reply.is_(None),
        instructions.c.expires_at > now,
    )
    return [_decode(message) for (message,) in connection.execute(query.order_by(instructions.c.id))]


def may_fetch(connection: Connection, device: str, sha256: str, now: float) -> bool:
    """Whether `sha256` is the weights, or their list of blocks, of an instruction that this device still works on."""
    query = select(instructions.c.input_sha256, instructions.c.message).where(
        instructions.c.device == device,
        instructions.c.state.in_(_WAITING),
        instructions.c.reply.is_(None),
        instructions.c.expires_at > now,
    )
    rows = connection.execute(query).all()
    return any(row.input_sha256 == sha256 or _decode(row.message).weights.blocks == sha256 for row in rows)


def expire(connection: Connection, now: float) -> None:
    """Mark what nobody can follow any more."""
    query = update(instructions).where(instructions.c.state.in_(_WAITING), instructions.c.expires_at <= now)
    connection.execute(query.values(state="expired"))


def _decode(message: bytes) -> Instruction:
    return codec.decode(message, Instruction, limit=limits.CONTROL_BYTES)
