"""An agent whose memory the disk damaged begins a new one, finds its models again and serves."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contract import codec
from contract.messages import BlobRef, Instruction
from edge_agent.config import Folder, Outbox
from edge_agent.errors import ConfigError, CorruptStateError
from edge_agent.placement import Placement, seal, unseal
from edge_agent.recovery import open_state
from edge_agent.state import State
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_parts import Parts


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A device with two versions of one model and one of another, which does not run."""
    parts = Parts(tmp_path)
    for revision, (model, version) in enumerate([("thirds", 1), ("thirds", 2), ("fourths", 1)], start=1):
        bundle = agent_bundles.make(model=model, version=version)
        parts.sign(bundle)
        parts.now += 1.0
        parts.want(revision, bundle)
        parts.settle(model)
    parts.state.close()
    return parts.folder


@pytest.fixture
def restart() -> Iterator[Callable[[Path], Parts]]:
    made: list[Parts] = []

    def begin(root: Path) -> Parts:
        made.append(Parts(root))
        made[-1].switch.restore()
        return made[-1]

    yield begin
    for parts in made:
        parts.state.close()


def _served(parts: Parts) -> dict[str, int]:
    x, _ = agent_models.samples(3, seed=0)
    for name in parts.serving.names():
        with parts.serving.use(name) as model:
            assert model.infer(x).probabilities.shape == (3, 3)
    return {ref.model: ref.version for ref in parts.serving.bundles()}


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(bytes(data))


def _no_database(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _gone(path: Path) -> None:
    path.unlink()


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _another_schema(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("create table models (something text)")
    db.close()


def _changed_pointer(path: Path) -> None:
    with sqlite3.connect(path) as db:
        ((value,),) = db.execute("select placement from models where name = 'thirds'")
        db.execute("update models set placement = ? where name = 'thirds'", (value[:-1] + b"\x7f",))
    db.close()


@pytest.mark.parametrize(
    "damage", [_no_database, _truncated, _empty, _gone, _a_folder, _another_schema, _changed_pointer]
)
def test_whatever_happens_to_the_memory_the_device_serves_what_it_served(
    folder: Folder, restart: Callable[[Path], Parts], damage: Callable[[Path], None]
) -> None:
    damage(folder.state)
    assert _served(restart(folder.root)) == {"thirds": 2, "fourths": 1}
    again = restart(folder.root)
    assert _served(again) == {"thirds": 2, "fourths": 1}
    placement = again.state.models.get("thirds")
    assert placement.previous is not None
    assert (placement.previous.bundle.version, placement.answered) == (1, 0)


def test_a_flipped_bit_anywhere_in_the_memory_leaves_a_device_that_serves(
    folder: Folder, restart: Callable[[Path], Parts]
) -> None:
    whole = folder.state.read_bytes()
    for at in range(0, len(whole), len(whole) // 60 + 1):
        folder.state.write_bytes(whole)
        _flip(folder.state, at)
        parts = restart(folder.root)
        assert _served(parts) == {"thirds": 2, "fourths": 1}, f"byte {at}"
        parts.state.close()


def test_a_device_that_lost_its_memory_takes_up_only_what_is_whole_and_recorded(
    folder: Folder, restart: Callable[[Path], Parts]
) -> None:
    folder.state.unlink()
    active = folder.slots / "thirds" / "b"
    (folder.slots / "thirds" / "c").mkdir()
    (folder.slots / "stray").write_bytes(b"")
    (folder.slots / "..evil").mkdir()
    _flip(active / "bundle.zip", 1000)
    (folder.slots / "fourths" / "a" / "record.json").unlink()
    parts = restart(folder.root)
    assert _served(parts) == {"thirds": 1}
    assert sorted(str(path.relative_to(folder.slots)) for path in folder.slots.rglob("*.zip")) == [
        "thirds/a/bundle.zip"
    ]


def test_a_memory_that_lost_all_that_came_after_a_first_try_is_no_word_on_what_serves(
    folder: Folder, restart: Callable[[Path], Parts]
) -> None:
    state = State(folder.state, outbox_id="o")
    with state.transaction():
        state._rows("delete from models")
        state.models.put("thirds", Placement(tried="a" * 64, tries=1))
    state.close()
    assert _served(restart(folder.root)) == {"thirds": 2, "fourths": 1}


def test_records_that_the_disk_broke_are_written_again_by_the_next_start(
    folder: Folder, restart: Callable[[Path], Parts]
) -> None:
    for record in folder.slots.rglob("record.json"):
        record.write_bytes(b"\x00" * 10)
    restart(folder.root).state.close()
    folder.state.unlink()
    assert _served(restart(folder.root)) == {"thirds": 2, "fourths": 1}


def test_a_record_that_lies_about_its_slot_is_not_taken_up(folder: Folder, restart: Callable[[Path], Parts]) -> None:
    folder.state.unlink()
    record = folder.slots / "fourths" / "a" / "record.json"
    record.write_bytes(record.read_bytes().replace(b'"version":1', b'"version":7'))
    (folder.slots / "thirds" / "a" / "record.json").write_bytes(b"{}")
    assert _served(restart(folder.root)) == {"thirds": 2}


def test_a_memory_that_cannot_be_put_aside_is_said(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    _no_database(folder.state)

    def refuse(*_: object) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr("edge_agent.recovery.os.replace", refuse)
    with pytest.raises(ConfigError, match="cannot be put aside"):
        open_state(folder.state, outbox_id="o", bounds=Outbox())


def test_the_damaged_memory_is_kept_for_a_look_at_it(folder: Folder) -> None:
    _no_database(folder.state)
    with pytest.raises(CorruptStateError, match="not a database"):
        State(folder.state, outbox_id="o")
    state = open_state(folder.state, outbox_id="o", bounds=Outbox())
    assert state.last_event("damaged") is not None
    state.close()
    assert folder.state.with_name("state.sqlite.damaged").read_bytes().startswith(b"no database")


def test_a_report_or_instruction_that_cannot_be_read_does_not_hold_up_the_others(folder: Folder) -> None:
    state = State(folder.state, outbox_id="o")
    first, second = state.pending(10)[:2]
    instruction = Instruction(
        id="i", run="r", round=1, kind="train", bundle_sha256="b", weights=BlobRef("w", 1), expires_at=1.0
    )
    state.add_instruction(instruction, at=1.0)
    state.close()
    with sqlite3.connect(folder.state) as db:
        db.execute("update outbox set body = x'c1' where seq = ?", (first,))
        db.execute("update instructions set payload = x'c1'")
    db.close()
    state = State(folder.state, outbox_id="o")
    assert state.read_report(first) is None
    assert state.read_report(second) is not None
    assert first not in state.pending(10)
    assert state.next_instruction() is None
    state.close()


def test_a_seal_holds_for_one_name_and_one_value_only() -> None:
    sealed = seal("thirds", Placement(answered=3))
    assert unseal("thirds", sealed, Placement) == Placement(answered=3)
    for name, data in (("fourths", sealed), ("thirds", sealed[:-1]), ("thirds", b""), ("thirds", codec.encode(3))):
        with pytest.raises(CorruptStateError):
            unseal(name, data, Placement)
