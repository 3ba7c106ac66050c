"""One suite for every mailbox: the fake that other tests use, and the one over the database."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from sqlalchemy import insert

from contract.messages import BlobRef, Instruction, RoundReply, UploadBlock
from coordinator.rounds import delivery, intake, runs
from coordinator.rounds.mailbox import Mailbox, SqlMailbox
from coordinator.rounds.tables import runs as runs_table
from coordinator.storage import Blobs, Storage, metadata, open_engine
from tests.fakes.memory_mailbox import MemoryMailbox

NOW = 1_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Devices(Protocol):
    """The other side of the mailbox."""

    def due(self) -> list[tuple[str, Instruction]]: ...
    def answer(self, device: str, reply: RoundReply, weights: bytes | None = None) -> None: ...


@dataclass
class Place:
    mailbox: Mailbox
    devices: Devices
    clock: Clock


class SqlDevices:
    def __init__(self, storage: Storage, clock: Clock) -> None:
        self.storage, self.clock = storage, clock

    def due(self) -> list[tuple[str, Instruction]]:
        with self.storage.engine.begin() as connection:
            found = delivery.due(connection, self.clock())
            delivery.sent(connection, [instruction.id for _, instruction in found], self.clock())
        return found

    def answer(self, device: str, reply: RoundReply, weights: bytes | None = None) -> None:
        with self.storage.engine.begin() as connection:
            if weights is not None and reply.weights is not None:
                block = UploadBlock(blob=reply.weights, index=0, count=1, data=weights)
                intake.on_upload_block(connection, self.storage.blobs, device, block, self.clock())
            intake.on_round_reply(connection, device, reply, self.clock())


@pytest.fixture(params=["memory", "sql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    clock = Clock()
    if request.param == "memory":
        memory = MemoryMailbox(clock=clock)
        yield Place(memory, memory, clock)
        return
    engine = open_engine(f"sqlite:///{tmp_path / 'db.sqlite'}")
    metadata.create_all(engine, tables=[table for table in metadata.sorted_tables if table.name in TABLES])
    storage = Storage(engine, Blobs(f"file://{tmp_path / 'blobs'}"))
    with engine.begin() as connection:
        connection.execute(insert(runs_table).values(ROW))
    yield Place(SqlMailbox(storage, clock=clock), SqlDevices(storage, clock), clock)
    engine.dispose()


TABLES = {"runs", "run_rounds", "instructions", "uploads", "updates"}
ROW = {
    "id": "run",
    "model": "digits",
    "version": 1,
    "bundle_sha256": "b" * 64,
    "cohort": ["a", "b"],
    "config": {},
    "state": runs.OPEN[1],
    "error": "",
    "created_at": NOW,
}


def instruction(device: str, *, weights: BlobRef, kind: str = "train", expires_at: float = NOW + 60) -> Instruction:
    return Instruction(
        id=f"run.1.{kind}.{device}",
        run="run",
        round=1,
        kind=kind,
        bundle_sha256="b" * 64,
        weights=weights,
        expires_at=expires_at,
    )


def reply(name: str, *, error: str = "", weights: BlobRef | None = None) -> RoundReply:
    return RoundReply(instruction=name, error=error, examples=10, metrics={"loss": 1.0}, weights=weights, counts=None)


def send(place: Place, *devices: str, kind: str = "train", expires_at: float = NOW + 60) -> list[str]:
    weights = place.mailbox.put(b"weights")
    letters = [(name, instruction(name, weights=weights, kind=kind, expires_at=expires_at)) for name in devices]
    return place.mailbox.send(letters)


def test_a_sent_instruction_is_due_once(place):
    send(place, "a", "b")
    assert [device for device, _ in place.devices.due()] == ["a", "b"]
    assert place.devices.due() == []


def test_the_device_gets_the_id_under_which_it_must_answer(place):
    ids = send(place, "a")
    assert [given.id for _, given in place.devices.due()] == ids


def test_nothing_is_collected_before_an_answer_and_the_same_every_time_after(place):
    (name,) = send(place, "a", kind="evaluate")
    assert place.mailbox.collect([name]) == {}
    place.devices.due()
    place.devices.answer("a", reply(name))
    assert place.mailbox.collect([name])[name].reply.examples == 10
    assert place.mailbox.collect([name])[name].reply.examples == 10


def test_the_update_comes_with_the_answer(place):
    (name,) = send(place, "a")
    place.devices.due()
    update = place.mailbox.put(b"elsewhere")
    place.devices.answer("a", reply(name, weights=update), b"elsewhere")
    letter = place.mailbox.collect([name])[name]
    assert (letter.error, letter.weights) == ("", b"elsewhere")


def test_a_failed_device_says_why(place):
    (name,) = send(place, "a")
    place.devices.due()
    place.devices.answer("a", reply(name, error="no samples"))
    letter = place.mailbox.collect([name])[name]
    assert (letter.error, letter.weights) == ("no samples", None)


def test_sending_a_round_again_finds_it_and_asks_nobody_twice(place):
    ids = send(place, "a", "b")
    place.devices.due()
    place.devices.answer("a", reply(ids[0], error="no samples"))
    assert send(place, "a", "b") == ids
    assert place.devices.due() == []
    assert set(place.mailbox.collect(ids)) == {ids[0]}


def test_what_expired_unanswered_is_asked_anew_under_another_id(place):
    (first,) = send(place, "a")
    place.devices.due()
    place.clock.now = NOW + 61
    (second,) = send(place, "a", expires_at=NOW + 200)
    assert second != first
    assert [given.id for _, given in place.devices.due()] == [second]


def test_what_was_answered_before_it_expired_is_found_after(place):
    (first,) = send(place, "a")
    place.devices.due()
    place.devices.answer("a", reply(first, error="no samples"))
    place.clock.now = NOW + 61
    assert send(place, "a", expires_at=NOW + 200) == [first]


def test_closed_instructions_are_not_sent(place):
    ids = send(place, "a")
    place.mailbox.close(ids)
    assert place.devices.due() == []
    assert place.mailbox.collect(ids) == {}


def test_expired_instructions_are_not_sent(place):
    send(place, "a")
    place.clock.now = NOW + 61
    assert place.devices.due() == []


def test_stored_weights_are_named_by_their_digest(place):
    assert place.mailbox.put(b"x") == place.mailbox.put(b"x")
    assert place.mailbox.put(b"x").size == 1
