"""What an operator asks from afar: done once, bounded, and without a word of what is secret."""

import io
import json
import logging
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contract import codec, limits
from contract.messages import BundleRef, Command, CommandReply, Measured
from edge_agent import diagnostics
from edge_agent.cli import main
from edge_agent.config import Folder
from edge_agent.errors import RefusedError
from edge_agent.liveness import Stopping
from edge_agent.remote import Remote
from edge_agent.state import State
from tests.fakes import agent_folder
from tests.fakes.measurements import MEASURED

DOCTOR = [{"check": "clock", "outcome": "ok", "found": "fine", "remedy": ""}]


class Stage:
    """A Remote whose clocks are set, on a real folder and a real state."""

    def __init__(self, folder: Folder) -> None:
        self.now = 1_800_000_000.0
        self.uptime = 0.0
        self.folder = folder
        self.state = State(folder.state, outbox_id="o")
        self.remote = Remote(
            folder.root,
            state=self.state,
            stopping=Stopping(),
            log=lambda: '{"message":"one"}\n',
            bench=self.bench,
            clock=lambda: self.now,
            monotonic=lambda: self.uptime,
        )

    def bench(self, ref: BundleRef, give_up: Callable[[], bool]) -> Measured:
        assert not give_up()
        if ref.model == "unsigned":
            raise RefusedError("the signed metadata names no such target")
        return MEASURED

    def ask(self, **fields: Any) -> None:
        whole = {"id": "c1", "kind": "log-level", "level": "debug", "seconds": 60.0, "expires_at": self.now + 60}
        self.remote.accept(Command(**{**whole, **fields}))

    def work(self) -> list[CommandReply]:
        self.remote.wake.set()
        self.remote.work(self.remote.wake)
        bodies = [self.state.read_report(seq) for seq in self.state.pending(100)]
        return [report.body for report in bodies if report and isinstance(report.body, CommandReply)]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(diagnostics, "_doctor", lambda _root: DOCTOR)
    level = logging.getLogger().level
    made = Stage(agent_folder.enrolled(tmp_path / "agent", tmp_path / "authority"))
    yield made
    made.state.close()
    logging.getLogger().setLevel(level)


def files(content: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_the_log_level_changes_for_a_while_and_goes_back_by_itself(stage):
    logging.getLogger().setLevel("WARNING")
    stage.ask()
    (reply,) = stage.work()
    assert (reply.command, reply.error) == ("c1", "")
    assert logging.getLogger().level == logging.DEBUG
    stage.uptime = 59.0
    stage.work()
    assert logging.getLogger().level == logging.DEBUG
    stage.uptime = 60.0
    stage.work()
    assert logging.getLogger().level == logging.WARNING


def test_a_second_level_before_the_first_ended_still_goes_back_to_the_usual_one(stage):
    logging.getLogger().setLevel("WARNING")
    stage.ask()
    stage.work()
    stage.ask(id="c2", level="error", seconds=100.0)
    stage.work()
    assert logging.getLogger().level == logging.ERROR
    stage.uptime = 100.0
    stage.work()
    assert logging.getLogger().level == logging.WARNING


def test_a_command_that_comes_again_is_done_once_also_after_a_restart(stage):
    stage.ask()
    stage.ask()
    assert len(stage.work()) == 1
    stage.ask()
    assert len(stage.work()) == 1
    again = Stage.__new__(Stage)
    again.__dict__.update(stage.__dict__)
    again.remote = Remote(stage.folder.root, state=stage.state, stopping=Stopping(), log=str, bench=stage.bench)
    again.ask()
    assert len(again.work()) == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"expires_at": 5.0}, "the device's clock says"),
        ({"expires_at": float("nan")}, "the device's clock says"),
        ({"seconds": 0.0}, "a log level for 0.0 s"),
        ({"seconds": float("nan")}, "a log level for nan s"),
        ({"seconds": 1e9}, "at most"),
    ],
)
def test_what_cannot_be_done_is_answered_with_the_reason(stage, fields, said):
    level = logging.getLogger().level
    stage.ask(**fields)
    (reply,) = stage.work()
    assert said in reply.error
    assert logging.getLogger().level == level


def test_an_archive_explains_the_device(stage):
    stage.state.event("refused", "thirds:1 float: too large", at=5.0)
    stage.ask(kind="diagnostics")
    (reply,) = stage.work()
    found = files(reply.content)
    assert json.loads(found["doctor.json"]) == DOCTOR
    assert json.loads(found["config.json"])["values"]["device"] == ["meter-1", "agent.toml"]
    assert json.loads(found["status.json"])["device"] == "meter-1"
    assert json.loads(found["events.json"]) == [{"at": 5.0, "kind": "refused", "text": "thirds:1 float: too large"}]
    assert "numpy" in json.loads(found["versions.json"])
    assert found["log.jsonl"] == '{"message":"one"}\n'


def test_archives_are_not_made_one_after_another(stage):
    stage.ask(kind="diagnostics")
    stage.ask(kind="diagnostics", id="c2")
    first, second = stage.work()
    assert first.content
    assert "ask again later" in second.error
    stage.uptime = 61.0
    stage.ask(kind="diagnostics", id="c3")
    assert stage.work()[-1].content


def test_more_commands_than_fit_are_left_to_come_again(stage):
    for index in range(40):
        stage.ask(id=f"c{index}")
    assert len(stage.work()) == 16


def test_an_archive_holds_no_key_no_password_and_no_sample(stage, monkeypatch):
    text = '\n[[sources]]\nkind = "mqtt"\noptions = {password = "hunter2"}\n'
    camera = ["view", "rtsp://admin:hunter2@cam/1", "--password", "hunter2", "--token=hunter2", "--size", "640"]
    text += f'\n[[sources]]\nkind = "command"\noptions = {{command = {json.dumps(camera)}}}\n'
    stage.folder.config.write_text(stage.folder.config.read_text() + text)
    secret = stage.folder.key.read_text()
    stage.state.event("odd", secret, at=1.0)
    log = json.dumps({"message": f"{secret} rtsp://admin:hunter2@cam"}) + "\n"
    content = diagnostics.archive(stage.folder.root, log, environment={})
    everything = "".join(files(content).values())
    assert "hunter2" not in everything
    assert "640" in everything
    for line in secret.splitlines():
        assert line not in everything
    assert "PRIVATE KEY" not in everything


def test_an_archive_keeps_its_size_and_the_newest_lines(stage):
    log = "".join(json.dumps({"n": index, "noise": os.urandom(60).hex()}) + "\n" for index in range(4000))
    content = diagnostics.archive(stage.folder.root, log, environment={})
    assert len(content) <= limits.DIAGNOSTICS_BYTES
    assert json.loads(files(content)["log.jsonl"].splitlines()[-1])["n"] == 3999
    tiny = diagnostics.archive(stage.folder.root, log, environment={}, limit=2000)
    assert len(tiny) <= 2000


def test_a_broken_folder_gives_an_archive_that_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(diagnostics, "_doctor", lambda _root: DOCTOR)
    out = tmp_path / "out.zip"
    assert main(["diagnostics", "--state", str(tmp_path / "nothing"), "--out", str(out)]) == 0
    found = files(out.read_bytes())
    assert "no agent here" in found["status.json"]
    assert "no agent here" in found["config.json"]
    assert "out.zip" in capsys.readouterr().out


def test_the_doctor_in_the_archive_is_the_real_one(tmp_path):
    folder = agent_folder.enrolled(tmp_path / "agent", tmp_path / "authority")
    found = json.loads(files(diagnostics.archive(folder.root, "", environment={}))["doctor.json"])
    assert found[0]["check"] == "configuration"
    assert {"broker", "clock", "certificate"} <= {finding["check"] for finding in found}


@pytest.mark.parametrize(("model", "error"), [("digits", ""), ("unsigned", "the signed metadata names no such target")])
def test_a_measurement_is_answered_as_json_or_refused_with_its_reason(stage, model, error):
    ref = BundleRef(model=model, version=1, variant="int8", target="t", sha256="a" * 64)
    stage.ask(kind="bench", bundle=ref)
    (reply,) = stage.work()
    assert reply.error == error
    assert reply.content == (b"" if error else codec.encode_json(MEASURED))
    assert len(reply.content) <= limits.MEASURED_BYTES
