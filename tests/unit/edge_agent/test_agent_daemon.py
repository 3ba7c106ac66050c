"""The daemon's own part: what it makes of any message, of a folder that a kill left, and what it tells a script."""

import fcntl
import io
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contract import codec, limits, signatures, topics
from contract.messages import (
    Ack,
    BlobRef,
    BlockRequest,
    BundleRef,
    DeltaReply,
    DeltaRequest,
    Desired,
    Hello,
    Instruction,
    Report,
    SignedReceipt,
    Up,
    Wanted,
)
from edge_agent import config, daemon, events, signing
from edge_agent import folder as folders
from edge_agent.config import Config, Folder
from edge_agent.errors import ConfigError, CorruptStateError
from edge_agent.session import Disconnected, Message
from edge_agent.state import State
from tests.fakes import agent_folder

DEVICE = "meter-1"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return agent_folder.enrolled(tmp_path / "agent", tmp_path / "coordinator", DEVICE)


class Heard:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, event: str, /, **fields: object) -> None:
        self.events.append((event, fields))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def agent(folder: Folder, heard: Heard) -> Iterator[daemon.Agent]:
    made = daemon.Agent(folder, tell=heard)
    yield made
    made._state.close()


def _instruction(**fields: Any) -> Instruction:
    whole = {"id": "i", "run": "r", "round": 1, "kind": "train", "bundle_sha256": "b", "expires_at": 1.0, **fields}
    return Instruction(weights=BlobRef("w", 1), **whole)


def _down(channel: str, payload: bytes, device: str = DEVICE) -> Message:
    return Message(topics.down(device, channel), payload)


@pytest.mark.parametrize(
    "message",
    [
        Message("", b""),
        Message("fleet/v1/dev/meter-1/down/round/more", b""),
        Message(topics.blob("a" * 64, 1)[:-1] + "x", b""),
        Message(topics.up(DEVICE, "hello"), b""),
        _down("unknown", b""),
        _down("desired", b"{"),
        _down("desired", b'{"type":"desired","revision":%d,"models":{}}' % 2**63),
        _down("desired", b'{"type":"desired","revision":-%d,"models":{}}' % 2**63),
        _down(
            "desired", b'{"type":"desired","revision":1,"models":{"../m":{"revision":1,"rollout":null,"bundle":null}}}'
        ),
        _down("ack", codec.encode(Ack(outbox="OUTBOX", seqs=[2**63]))),
        _down("desired", b'{"type":"desired","revision":"1","models":{}}'),
        _down("desired", b"[" * 10_000),
        _down("desired", b" " * (limits.CONTROL_BYTES + 1)),
        _down("metadata", b"\xc1"),
        _down("ack", b"\x91" * 10_000),
        _down("ack", codec.encode(Ack(outbox="o", seqs=list(range(20_000))))),
        _down("round", codec.encode(Ack(outbox="o", seqs=[1]))),
        _down("round", codec.encode(_instruction(id="i" * limits.CONTROL_BYTES))),
        _down("round", codec.encode(_instruction()), device="meter-2"),
    ],
    ids=lambda message: message.topic[-20:],
)
def test_a_message_that_breaks_the_contract_is_dropped_and_told(
    agent: daemon.Agent, heard: Heard, message: Message
) -> None:
    agent._state.outbox_id = "OUTBOX"
    agent._on_event(message)
    assert [event for event, _ in heard.events] == ["dropped"]
    assert agent._state.next_instruction() is None
    assert agent._desired is None


def test_an_instruction_is_remembered_and_an_ack_forgets_a_report(agent: daemon.Agent, heard: Heard) -> None:
    agent._on_event(_down("round", codec.encode(_instruction())))
    assert agent._state.next_instruction() == _instruction()
    seq = agent._state.report(SignedReceipt(payload=b"", signature=b""))
    agent._on_event(_down("ack", codec.encode(Ack(outbox=agent._state.outbox_id, seqs=[seq]))))
    assert agent._state.pending_count() == 0
    agent._on_event(Disconnected("the broker went away"))
    assert heard.events == [("disconnected", {"reason": "the broker went away"})]


def test_a_pull_ends_at_once_when_another_bundle_is_wanted(
    agent: daemon.Agent, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def desired(revision: int) -> Desired:
        ref = BundleRef(model="m", version=revision, variant="v", target=f"bundles/{revision}", sha256="a" * 64)
        wanted = Wanted(revision=revision, rollout=None, bundle=ref)
        return Desired(revision=revision, models={"m": wanted, "x": Wanted(revision=1, rollout=None, bundle=None)})

    asked = threading.Event()
    looked_up: list[str] = []

    def send(message: Up) -> bool:
        if isinstance(message, DeltaRequest):
            agent._delivery.accept_delta(DeltaReply(base=message.base, target=message.target, blob=None))
        if isinstance(message, BlockRequest):
            asked.set()
        return True

    def trusted(target: str) -> daemon.trust.Target:
        looked_up.append(target)
        return daemon.trust.Target(10_000_000, "a" * 64)

    monkeypatch.setattr(agent._session, "send", send)
    monkeypatch.setattr(agent._updater, "_trusted", trusted)
    agent._on_event(_down("desired", codec.encode_json(desired(1))))
    worker = threading.Thread(target=agent._workers.work, args=(agent._update, agent._wake_updater))
    worker.start()
    assert asked.wait(10)
    agent._on_event(_down("desired", codec.encode_json(desired(2))))
    for _ in range(200):
        if len(looked_up) > 1:
            break
        agent._stopping.wait(0.05)
    agent.stop()
    worker.join(10)
    assert looked_up[:2] == ["bundles/1", "bundles/2"]


def test_what_a_kill_left_unfinished_is_swept_and_a_pull_stays_for_a_while(folder: Folder) -> None:
    (folder.staging / "job-1").mkdir(parents=True)
    for name, age in (("new.part", 100.0), ("old.part", 1.0)):
        (folder.staging / name).write_bytes(b"x")
        os.utime(folder.staging / name, (age, age))
    folders.sweep(folder.staging, older_than=50.0)
    assert [path.name for path in folder.staging.iterdir()] == ["new.part"]


def test_a_look_at_the_status_does_not_keep_the_agent_from_starting(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as lock, path.open("a") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.1, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        assert folders.locked(lock)


def test_settings_are_read_as_they_were_written_and_only_by_the_owner(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "agent")
    written = Config(device="m", broker_host="h", broker_port=1, hardware_class='Zähler 😀 \\ "x"', source="a b")
    config.save(folder, written)
    assert config.load(folder) == written
    assert folder.config.stat().st_mode & 0o777 == 0o600


def test_events_are_lines_of_json_and_a_reader_that_went_away_does_no_harm() -> None:
    stream = io.StringIO()
    tell = events.Lines(stream, lambda: 12.34567)
    tell("window", samples=3)
    tell("started", bundle=BundleRef(model="m", version=1, variant="v", target="t", sha256="s"))
    first, second = stream.getvalue().splitlines()
    assert json.loads(first) == {"event": "window", "at": 12.346, "samples": 3}
    assert json.loads(second)["bundle"]["version"] == 1

    class Broken(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    events.Lines(Broken(), lambda: 0.0)("stopped")


def test_a_child_runs_no_code_from_the_folder_that_the_agent_was_started_in(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "edge_agent").mkdir()
    (tmp_path / "edge_agent" / "__init__.py").write_text("raise SystemExit('stolen')")
    monkeypatch.chdir(tmp_path)
    signatures.verify(folder.certificate.read_bytes(), b"payload", signing.sign(folder.key, b"payload"))


@pytest.mark.parametrize(
    "error",
    [sqlite3.DatabaseError("malformed"), CorruptStateError("malformed")],
    ids=lambda error: type(error).__name__,
)
def test_damage_that_shows_while_the_agent_runs_ends_it_with_a_sentence_for_the_next_start(
    agent: daemon.Agent, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    if isinstance(error, sqlite3.Error):
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT

    def tick() -> bool:
        raise error

    monkeypatch.setattr(agent._monitor, "tick", tick)
    with pytest.raises(ConfigError, match="damaged while it ran: malformed; start it again"):
        agent.run()


def test_a_signal_that_interrupts_whoever_holds_a_lock_ends_the_agent(agent: daemon.Agent) -> None:
    with agent._stopping._cond, agent._wake_updater._cond, agent._wake_rounds._cond:  # type: ignore[attr-defined]
        agent.end()
    agent.run()
    assert agent._stopping.is_set()


def test_what_a_slow_link_does_not_take_now_is_not_read_again_and_again(
    agent: daemon.Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = SimpleNamespace(number=1, unconfirmed=list, send=lambda message: isinstance(message, Hello))
    monkeypatch.setattr(agent._session, "_connection", connection)
    for _ in range(5):
        agent._state.report(SignedReceipt(payload=b"", signature=b""))
    read: list[int] = []

    def read_report(seq: int) -> Report | None:
        read.append(seq)
        return State.read_report(agent._state, seq)

    monkeypatch.setattr(agent._state, "read_report", read_report)
    agent._speak()
    assert read == [1]
    connection.send = lambda _message: True
    agent._speak()
    assert read == [1, 1, 2, 3, 4, 5]


def test_a_full_disk_does_not_end_the_agent(agent: daemon.Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = []

    def tick() -> bool:
        failures.append(None)
        if len(failures) > 2:
            agent.stop()
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(agent._monitor, "tick", tick)
    agent.run()
    assert len(failures) == 3


def test_an_agent_starts_on_a_disk_that_takes_nothing(folder: Folder) -> None:
    before = daemon.Agent(folder)
    before._state.put("held", "a model that waited when the disk became full")
    before._state.close()
    connect = sqlite3.connect

    def full(*arguments: Any, **keywords: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **keywords)
        connection.execute("pragma max_page_count = 1")
        return connection

    with pytest.MonkeyPatch.context() as broken:
        broken.setattr("edge_agent.state.sqlite3.connect", full)
        broken.setattr(State, "_rows", _only_reads(State._rows))
        broken.setattr("edge_agent.placement.seal", lambda _name, _value: bytes(1_000_000))
        broken.setattr("edge_agent.state.seal", lambda _name, _value: bytes(1_000_000))
        agent = daemon.Agent(folder)
        with pytest.raises(sqlite3.OperationalError, match="full"):
            agent._state.put("anything", "at all")
        agent._state.close()


def _only_reads(rows: Callable[..., Any]) -> Callable[..., Any]:
    def read(state: State, sql: str, *parameters: object) -> Any:
        if sql.startswith("delete"):  # of a page that must be copied first
            raise sqlite3.OperationalError("database or disk is full")
        return rows(state, sql, *parameters)

    return read
