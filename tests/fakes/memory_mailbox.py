"""A mailbox in memory, with the devices' side of it: what tests of rounds use where a database would only be slow."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from contract.messages import BlobRef, Instruction, RoundReply
from coordinator.rounds.mailbox import Letter


@dataclass
class _Entry:
    device: str
    instruction: Instruction
    state: str = "queued"
    letter: Letter | None = None


class MemoryMailbox:
    """`mailbox.Mailbox` without durability."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        """Make an empty one; `clock` gives seconds since the epoch."""
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self.blobs: dict[str, bytes] = {}

    def put(self, data: bytes) -> BlobRef:
        """Store weights that devices will pull."""
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return BlobRef(digest, len(data))

    def send(self, letters: Sequence[tuple[str, Instruction]]) -> list[str]:
        """Queue instructions, or find them again."""
        return [self._send(device, instruction) for device, instruction in letters]

    def _send(self, device: str, instruction: Instruction) -> str:
        wanted = instruction.id
        earlier = [name for name in self._entries if name == wanted or name.startswith(f"{wanted}#")]
        for name in earlier:
            entry = self._entries[name]
            if entry.letter is not None or self._lives(entry):
                return name
        name = wanted if not earlier else f"{wanted}#{len(earlier) + 1}"
        self._entries[name] = _Entry(device, msgspec.structs.replace(instruction, id=name))
        return name

    def _lives(self, entry: _Entry) -> bool:
        return entry.state in {"queued", "sent"} and entry.instruction.expires_at > self._clock()

    def collect(self, ids: Sequence[str]) -> dict[str, Letter]:
        """Answers that are there."""
        return {name: letter for name in ids if (letter := self._entries[name].letter) is not None}

    def close(self, ids: Sequence[str]) -> None:
        """Nobody waits for these any more."""
        for name in ids:
            self._entries[name].state = "expired"

    def due(self) -> list[tuple[str, Instruction]]:
        """The devices' side: what is to be done, each once."""
        found = [entry for entry in self._entries.values() if entry.state == "queued" and self._lives(entry)]
        for entry in found:
            entry.state = "sent"
        return [(entry.device, entry.instruction) for entry in found]

    def answer(self, device: str, reply: RoundReply, weights: bytes | None = None) -> None:
        """The devices' side: answer an instruction; later than its expiry, or a second time, it changes nothing."""
        entry = self._entries[reply.instruction]
        if entry.device == device and self._lives(entry) and entry.letter is None:
            entry.letter = Letter(reply, reply.error, None if reply.error else weights)
