"""Where the process of a run and the coordinator's gateway meet.

The run sends instructions and looks for replies; the gateway delivers. Both may be killed at any moment, so sending
the same round again gives the same ids and the replies that have already come.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
from sqlalchemy import Connection, RowMapping, insert, select, update

from contract import codec, limits
from contract.messages import BlobRef, Instruction, RoundReply
from coordinator.rounds.tables import instructions
from coordinator.storage import Storage


@dataclass(frozen=True)
class Letter:
    """An answered instruction. `error` is empty where it succeeded; `weights` are the bytes of the update."""

    reply: RoundReply
    error: str
    weights: bytes | None


class Mailbox(Protocol):
    """The port; `tests/ports/test_mailbox.py` says what every implementation must do."""

    def put(self, data: bytes) -> BlobRef:
        """Store weights that devices will pull."""

    def send(self, letters: Sequence[tuple[str, Instruction]]) -> list[str]:
        """Queue instructions by device, all or none, and return their ids in the same order.

        The id given in an Instruction names the device's part in the round. Sent again, it gives the id under which
        it lives or was answered; where it expired unanswered, it is queued anew under another id.
        """

    def collect(self, ids: Sequence[str]) -> dict[str, Letter]:
        """Answers that are there, by id; the same ones each time it is asked."""

    def close(self, ids: Sequence[str]) -> None:
        """Nobody waits for these any more: devices are not asked again, and later answers do not count."""


class SqlMailbox:
    """The port over the coordinator's own database and blobs."""

    def __init__(self, storage: Storage, *, clock: Callable[[], float] = time.time) -> None:
        """Use a storage; `clock` gives seconds since the epoch."""
        self._storage = storage
        self._clock = clock

    def put(self, data: bytes) -> BlobRef:
        """Store weights that devices will pull."""
        return self._storage.blobs.put_artifact(data)

    def send(self, letters: Sequence[tuple[str, Instruction]]) -> list[str]:
        """Queue instructions, or find them again."""
        with self._storage.engine.begin() as connection:
            return [self._send(connection, device, instruction) for device, instruction in letters]

    def _send(self, connection: Connection, device: str, instruction: Instruction) -> str:
        part = (
            instructions.c.run == instruction.run,
            instructions.c.round == instruction.round,
            instructions.c.kind == instruction.kind,
            instructions.c.device == device,
        )
        rows = connection.execute(select(instructions).where(*part)).mappings().all()
        for row in rows:
            if row["input_sha256"] == instruction.weights.sha256 and self._lives(row):
                return str(row["id"])
        attempt = instruction.id if not rows else f"{instruction.id}.{len(rows) + 1}"
        message = codec.encode(msgspec.structs.replace(instruction, id=attempt))
        codec.check_size(message, limits.CONTROL_BYTES, "an instruction")
        connection.execute(
            insert(instructions).values(
                id=attempt,
                run=instruction.run,
                round=instruction.round,
                kind=instruction.kind,
                device=device,
                message=message,
                input_sha256=instruction.weights.sha256,
                input_size=instruction.weights.size,
                state="queued",
                expires_at=instruction.expires_at,
            )
        )
        return attempt

    def _lives(self, row: RowMapping) -> bool:
        return row["state"] == "answered" or (row["state"] != "expired" and row["expires_at"] > self._clock())

    def collect(self, ids: Sequence[str]) -> dict[str, Letter]:
        """Answers that are there."""
        query = select(instructions).where(instructions.c.id.in_(ids), instructions.c.state == "answered")
        with self._storage.engine.begin() as connection:
            rows = connection.execute(query).mappings().all()
        return {str(row["id"]): self._letter(row) for row in rows}

    def _letter(self, row: RowMapping) -> Letter:
        reply = codec.decode(row["reply"], RoundReply)
        whole = not row["error"] and row["weights_sha256"] is not None
        return Letter(reply, row["error"], self._storage.blobs.get(row["weights_sha256"]) if whole else None)

    def close(self, ids: Sequence[str]) -> None:
        """Expire what is unanswered."""
        open_ones = (instructions.c.id.in_(ids), instructions.c.state.in_(("queued", "sent")))
        with self._storage.engine.begin() as connection:
            connection.execute(update(instructions).where(*open_ones).values(state="expired"))
