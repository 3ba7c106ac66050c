"""Every check of the doctor on a healthy folder and on a broken one."""

import fcntl
import json
import os
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from contract.messages import SignedReceipt
from coordinator import pki
from edge_agent import doctor
from edge_agent.cli import main
from edge_agent.config import Folder
from edge_agent.doctor import checks
from edge_agent.placement import Placement, Slot
from edge_agent.serving import Serving
from edge_agent.slots import Slots
from edge_agent.state import State
from tests.fakes import agent_api, agent_bundles, agent_folder

DAY = 86400.0
OFFLINE = [(name, check) for name, check in checks.ALL if name not in {"broker", "coordinator"}]
BY_NAME = dict(checks.ALL)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = agent_folder.enrolled(tmp_path / "agent", tmp_path / "authority", days=30)
    made.tuf_root.parent.mkdir()
    made.tuf_root.write_text('{"signed": {"version": 1}}')
    return made


def look(folder: Folder, name: str, *, now: float | None = None) -> doctor.Finding:
    at = time.time() if now is None else now
    (finding,) = doctor.examine(folder.root, {}, at, [(name, BY_NAME[name])])
    assert finding.check == name
    assert bool(finding.remedy) == (finding.outcome != "ok")
    return finding


def with_bundle(folder: Folder, name: str = "a") -> Path:
    """Put a bundle into a slot and make it serve."""
    data = agent_bundles.make()
    ref = agent_bundles.ref(data)
    slots, slot = Slots(folder.slots), Slot(name=name, bundle=ref, rollout=None, activated_at=1.0)
    (folder.root / "pulled").write_bytes(data)
    slots.stage(slot, folder.root / "pulled")
    state = State(folder.state, outbox_id="o")
    state.models.put(ref.model, Placement(active=slot))
    state.close()
    return slots.path(slot)


def test_a_healthy_device_is_all_well_apart_from_belonging_to_root_here(folder):
    with_bundle(folder)
    findings = doctor.examine(folder.root, {}, time.time(), OFFLINE)
    bad = {finding.check for finding in findings if finding.outcome != "ok"}
    assert bad <= {"permissions", "disk", "memory"}, findings
    assert [finding.check for finding in findings] == [name for name, _ in OFFLINE]


@pytest.mark.parametrize(("now", "outcome"), [(0.0, "fail"), (4_102_444_800.0, "fail"), (-5 * DAY, "warn")])
def test_a_clock_that_cannot_be_right_is_found(folder, now, outcome):
    assert look(folder, "clock").outcome == "ok"
    finding = look(folder, "clock", now=now if now >= 0 else time.time() + now)
    assert finding.outcome == outcome
    assert "timedatectl" in finding.remedy


@pytest.mark.parametrize(
    ("days", "outcome", "text"), [(0, "ok", "valid for"), (-3, "fail", "valid from"), (25, "warn", "was not renewed"),
                                  (40, "fail", "expired")]
)  # fmt: skip
def test_a_certificate_is_judged_by_the_clock(folder, days, outcome, text):
    finding = look(folder, "certificate", now=time.time() + days * DAY)
    assert (finding.outcome, text in finding.found) == (outcome, True)


def test_key_and_certificate_that_do_not_belong_together_are_found(folder, tmp_path):
    other = agent_folder.enrolled(tmp_path / "other", tmp_path / "authority")
    shutil.copy(other.key, folder.key)
    assert "is of another key" in look(folder, "certificate").found


def test_a_certificate_of_another_device_is_found(folder, tmp_path):
    other = agent_folder.enrolled(tmp_path / "other", tmp_path / "authority", "meter-2")
    shutil.copy(other.key, folder.key)
    shutil.copy(other.certificate, folder.certificate)
    assert "agent.toml says 'meter-1'" in look(folder, "certificate").found


def test_a_certificate_of_another_authority_is_found(folder, tmp_path):
    pki.create(tmp_path / "stranger")
    shutil.copy(tmp_path / "stranger" / "pki" / "ca.crt", folder.ca)
    assert "is not signed by" in look(folder, "certificate").found


@pytest.mark.parametrize("name", ["key", "certificate", "ca", "tuf_root"])
@pytest.mark.parametrize("damage", ["removed", "truncated", "a folder"])
def test_a_broken_file_of_the_identity_is_named(folder, name, damage):
    path: Path = getattr(folder, name)
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "a folder":
        path.mkdir()
    finding = look(folder, "trust" if name == "tuf_root" else "certificate")
    assert finding.outcome == "fail"
    assert str(path) in finding.found or str(path.parent) in finding.found
    assert "enrol" in finding.remedy


def test_a_wrong_key_of_the_configuration_is_found_and_the_network_is_not_tried(folder):
    folder.config.write_text(folder.config.read_text() + "\ntreads = 1\n[upd]\n")
    assert "no key treads; the nearest is threads; " in look(folder, "configuration").found
    assert "not tried" in look(folder, "broker").found


def test_a_damaged_database_is_found_and_how_to_begin_anew_is_said(folder):
    assert "has not run yet" in look(folder, "database").found
    with_bundle(folder)
    assert look(folder, "database").outcome == "ok"
    with folder.state.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    finding = look(folder, "database")
    assert finding.outcome == "fail"
    assert "puts the file aside" in finding.remedy


def test_a_full_outbox_is_found(folder):
    folder.config.write_text(folder.config.read_text() + "\n[outbox]\nmax_bytes = 100000\n")
    state = State(folder.state, outbox_id="o")
    assert look(folder, "outbox").outcome == "ok"
    for _ in range(9):
        state.report(SignedReceipt(payload=b"x" * 10_000, signature=b""))
    state.close()
    finding = look(folder, "outbox")
    assert (finding.outcome, "9 reports wait" in finding.found) == ("warn", True)


def test_a_bundle_that_the_disk_lost_or_changed_is_found(folder):
    path = with_bundle(folder)
    assert "golden vectors hold" in look(folder, "slots").found
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    finding = look(folder, "slots")
    assert (finding.outcome, "SHA-256" in finding.found) == ("fail", True)
    path.unlink()
    assert "cannot be read" in look(folder, "slots").found


def test_a_runtime_that_cannot_be_loaded_is_found(folder, monkeypatch):
    assert "ai-edge-litert" in look(folder, "runtime").found
    monkeypatch.setitem(__import__("sys").modules, "ai_edge_litert.interpreter", None)
    finding = look(folder, "runtime")
    assert (finding.outcome, "cannot be loaded" in finding.found) == ("fail", True)


def test_a_disk_that_cannot_be_written_is_found(folder, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge_agent.doctor.machine.write_atomically", full)
    finding = look(folder, "disk")
    assert (finding.outcome, "No space left" in finding.found) == ("fail", True)


@pytest.mark.parametrize(("free", "outcome"), [(2**20, "fail"), (100 * 2**20, "warn"), (2**40, "ok")])
def test_a_disk_that_is_almost_full_is_found(folder, monkeypatch, free, outcome):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(2**41, 2**41 - free, free))
    assert look(folder, "disk").outcome == outcome


@pytest.mark.parametrize(("available", "outcome"), [(2**20, "fail"), (64 * 2**20, "warn"), (2**30, "ok")])
def test_little_memory_is_found(folder, monkeypatch, available, outcome):
    monkeypatch.setattr("edge_agent.doctor.machine._meminfo", lambda: {"MemAvailable": available})
    monkeypatch.setattr("edge_agent.doctor.machine._cgroup_limit", lambda: None)
    assert look(folder, "memory").outcome == outcome
    monkeypatch.setattr("edge_agent.doctor.machine._meminfo", lambda: {"MemAvailable": 2**40})
    monkeypatch.setattr("edge_agent.doctor.machine._cgroup_limit", lambda: available)
    assert look(folder, "memory").outcome == outcome


@pytest.mark.parametrize("place", ["pki/device.key", "samples/key"])
def test_a_secret_that_others_may_read_is_found(folder, place):
    secret = folder.root / place
    secret.parent.mkdir(exist_ok=True)
    secret.touch()
    secret.chmod(0o644)
    finding = look(folder, "permissions")
    assert (finding.outcome, str(secret) in finding.found) == ("fail", True)
    assert finding.remedy == f"chmod -R go= {folder.root}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_found(folder):
    os.chown(folder.certificate, 12345, -1)
    assert "does not belong to the owner" in look(folder, "permissions").found


def test_the_doctor_works_where_there_is_nothing_at_all(tmp_path, capsys):
    assert main(["doctor", "--state", str(tmp_path / "nothing"), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert [finding["check"] for finding in findings] == [name for name, _ in checks.ALL]
    assert findings[0]["outcome"] == "fail"


@pytest.mark.parametrize("rubbish", [b"", b"\x00" * 5000, b"[" * 5000])
def test_the_doctor_works_where_every_file_is_rubbish(folder, rubbish, capsys):
    with_bundle(folder)
    for path in [path for path in folder.root.rglob("*") if path.is_file()]:
        path.write_bytes(rubbish)
    assert main(["doctor", "--state", str(folder.root)]) == 1
    shown = capsys.readouterr().out
    assert "fail configuration" in shown
    assert "Traceback" not in shown


class Mute:
    """A server that takes connections and never says a word."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._held.append(self._listener.accept()[0])

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self._held:
            connection.close()


@pytest.fixture
def mute() -> Iterator[Mute]:
    made = Mute()
    yield made
    made.close()


def test_a_broker_that_is_away_or_takes_connections_and_never_answers_is_found(folder, mute, monkeypatch):
    monkeypatch.setattr("edge_agent.doctor.network._TIMEOUT_S", 0.5)
    finding = look(folder, "broker")
    assert (finding.outcome, "cannot be reached" in finding.found) == ("fail", True)
    folder.config.write_text(folder.config.read_text().replace("broker_port = 1\n", f"broker_port = {mute.port}\n"))
    finding = look(folder, "broker")
    assert (finding.outcome, "no TLS with" in finding.found) == ("fail", True)


def test_a_name_that_leads_nowhere_is_found(folder):
    folder.config.write_text(folder.config.read_text().replace('"127.0.0.1"', '"no-such-host.invalid"'))
    assert "cannot be resolved" in look(folder, "broker").found


def test_without_an_address_of_the_coordinator_there_is_nothing_to_check(folder):
    assert look(folder, "coordinator").outcome == "ok"


def test_looking_at_a_database_does_not_change_it(folder):
    with_bundle(folder)
    with closing(sqlite3.connect(folder.state)) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    before = folder.state.read_bytes()
    look(folder, "database")
    look(folder, "slots")
    look(folder, "outbox")
    assert folder.state.read_bytes() == before


def test_a_local_api_that_does_not_answer_is_found(folder):
    assert look(folder, "api").found == "nobody listens: the agent does not run"
    with folder.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        finding = look(folder, "api")
        assert (finding.outcome, "does the agent run" in finding.found) == ("fail", True)
        serving = Serving()
        serving.swap("thirds", agent_api.model(agent_bundles.make()))
        with agent_api.served(folder.root, serving):
            assert look(folder, "api").found == f"{folder.root / 'api.sock'} answer, 1 models serve"
        folder.config.write_text(folder.config.read_text() + '\n[api]\nsocket = ""\n')
        assert look(folder, "api").found == "switched off by api.socket"


def test_sources_that_cannot_be_opened_are_found(folder):
    assert look(folder, "sources").found == "only the folder `source`"
    good = folder.config.read_text()
    bad = '[[sources]]\nkind = "kinect"\n[[sources]]\nkind = "csv"\noptions = {pth = "f"}\n'
    folder.config.write_text(f"{good}\n{bad}")
    finding = look(folder, "sources")
    assert finding.outcome == "fail"
    assert "no source 'kinect' is installed" in finding.found
    assert "`edge-agent sources` lists the options" in finding.found
    folder.config.write_text(f'{good}\n[[sources]]\nkind = "csv"\noptions = {{path = "f"}}\n')
    assert look(folder, "sources").found == "csv, beside the folder `source`"
    with closing(State(folder.state, outbox_id="o")) as state:
        state.event("source", "source/csv-1 failed: no such file; opened again in 60 s", at=time.time())
    finding = look(folder, "sources")
    assert (finding.outcome, "no such file" in finding.found) == ("warn", True)
    assert look(folder, "sources", now=time.time() + 3700).outcome == "ok"
