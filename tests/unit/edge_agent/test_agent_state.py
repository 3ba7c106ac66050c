"""What the agent remembers: transactions, the outbox, instructions, and which reports are due."""

import resource
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import limits
from contract.errors import TooLargeError
from contract.messages import BlobRef, Instruction, RoundReply, SignedReceipt, UploadBlock
from edge_agent.errors import ConfigError
from edge_agent.outbox import Flow
from edge_agent.state import State


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    made = State(tmp_path / "state.sqlite", outbox_id="first")
    yield made
    made.close()


def _receipt(number: int) -> SignedReceipt:
    return SignedReceipt(payload=b"%d" % number, signature=b"")


def _instruction(name: str) -> Instruction:
    return Instruction(
        id=name, run="r", round=1, kind="train", bundle_sha256="b", weights=BlobRef("w", 1), expires_at=1.0
    )


def test_the_outbox_keeps_its_name_and_never_gives_a_number_twice(state: State, tmp_path: Path) -> None:
    assert [state.report(_receipt(number)) for number in range(3)] == [1, 2, 3]
    state.forget("first", [3, 2])
    state.forget("another", [1])
    assert (state.pending(10), state.pending_count()) == ([1], 1)
    state.close()
    again = State(tmp_path / "state.sqlite", outbox_id="second")
    assert again.outbox_id == "first"
    assert again.report(_receipt(4)) == 4
    report = again.read_report(1)
    assert report is not None
    assert (report.outbox, report.seq, report.body) == ("first", 1, _receipt(0))
    assert again.read_report(2) is None
    again.close()


def _report_much(state: State) -> None:
    with state.transaction():
        for _ in range(200):  # more than SQLite's cache holds, so that it writes before the commit, too
            state.report(SignedReceipt(payload=bytes(5_000), signature=b""))


@pytest.mark.parametrize("room", [0, 5_000, 60_000, 700_000])  # bytes that the write-ahead log may still grow
def test_a_full_disk_undoes_the_transaction_and_the_next_one_works_when_there_is_room(
    state: State, tmp_path: Path, room: int
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "state.sqlite-wal").stat().st_size + room, before[1]))
    try:
        with pytest.raises(sqlite3.OperationalError, match="disk"):
            _report_much(state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert state.pending(10) == []
    assert state.report(_receipt(1)) == 1


def test_a_file_that_is_no_database_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "state.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match=r"state\.sqlite: the agent's memory cannot be used"):
        State(tmp_path / "state.sqlite", outbox_id="o")


def test_of_the_instructions_that_are_done_only_the_newest_are_remembered(state: State) -> None:
    for number in range(1010):
        assert state.add_instruction(_instruction(f"i{number}"), at=0.0)
        if number:
            state.instruction_done(f"i{number}")
    assert not state.add_instruction(_instruction("i1009"), at=0.0)
    assert state.add_instruction(_instruction("i5"), at=0.0)
    assert [instruction.id for instruction in [state.next_instruction()] if instruction] == ["i0"]


def test_a_flood_of_instructions_does_not_fill_the_disk(state: State) -> None:
    assert sum(state.add_instruction(_instruction(f"i{number}"), at=float(number)) for number in range(150)) == 100
    state.instruction_done("i0")
    assert state.add_instruction(_instruction("i149"), at=149.0)
    assert not state.add_instruction(_instruction("i148"), at=148.0)


def test_an_exception_undoes_everything_of_its_transaction_also_the_nested_parts(state: State) -> None:
    def change() -> None:
        with state.transaction():
            state.put("key", 1)
            with state.transaction():
                state.report(_receipt(1))
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        change()
    assert (state.get("key", int, 0), state.pending(10)) == (0, [])
    with state.transaction():
        state.put("key", 2)
    assert state.get("key", int, 0) == 2
    state.put("key", None)
    assert state.get("key", int, 0) == 0


def test_a_report_that_no_broker_would_carry_is_refused_and_the_largest_block_is_not(state: State) -> None:
    blob = BlobRef("a" * 64, limits.BLOCK_BYTES)
    state.report(UploadBlock(blob=blob, index=0, count=1, data=bytes(limits.BLOCK_BYTES)))
    with pytest.raises(TooLargeError):
        state.report(UploadBlock(blob=blob, index=0, count=1, data=bytes(limits.MESSAGE_BYTES)))


def test_an_instruction_is_done_once_whoever_repeats_it(state: State) -> None:
    assert state.add_instruction(_instruction("one"), at=1.0)
    assert state.add_instruction(_instruction("two"), at=2.0)
    assert not state.add_instruction(_instruction("one"), at=3.0)
    assert state.next_instruction() == _instruction("one")
    state.instruction_done("one")
    assert state.next_instruction() == _instruction("two")
    state.instruction_done("two")
    assert state.next_instruction() is None
    assert not state.add_instruction(_instruction("one"), at=4.0)


def test_every_kind_of_report_comes_back_as_it_went_in(state: State) -> None:
    reply = RoundReply(instruction="i", error="", examples=1, metrics={"loss": 0.5}, weights=None, counts=None)
    report = state.read_report(state.report(reply))
    assert report is not None
    assert report.body == reply


def test_the_newest_event_of_a_kind_is_told_and_old_ones_are_forgotten(state: State) -> None:
    assert state.last_event("refused") is None
    for number in range(1005):
        state.event("refused", str(number), at=float(number))
    event = state.last_event("refused")
    assert event is not None
    assert (event.at, event.text) == (1004.0, "1004")
    assert state._rows("select count(*) from events")[0][0] == 1000


def test_reports_go_out_in_order_few_at_a_time_and_again_when_unconfirmed() -> None:
    flow = Flow(retry_s=10)
    pending = list(range(1, 21))
    assert flow.due(pending, 0.0) == pending[:8]
    for seq in pending[:8]:
        flow.sent(seq, 0.0)
    assert flow.due(pending, 9.0) == []
    assert flow.due(pending[2:], 9.0) == [9, 10]
    assert flow.due(pending, 10.0) == pending[:8]
    for seq in pending[:8]:
        flow.sent(seq, 10.0)
    flow.reset()
    assert flow.due(pending, 10.1) == pending[:8]


@given(lost=st.lists(st.booleans(), max_size=60))
def test_every_report_is_confirmed_at_last_however_many_are_lost(lost: list[bool]) -> None:
    flow, pending, now = Flow(retry_s=1), list(range(30)), 0.0
    losses = iter(lost)
    while pending and now < 60 * 64 + 60:  # the longest wait, as often as something can be lost
        for seq in flow.due(pending, now):
            flow.sent(seq, now)
            if not next(losses, False):
                pending.remove(seq)
        now += 0.5
    assert pending == []
