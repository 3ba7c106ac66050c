"""`edge-agent samples`, and that diagnostics hold nothing of what is kept."""

import fcntl
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edge_agent.cli import main
from edge_agent.config import Folder
from edge_agent.diagnostics import archive
from edge_agent.samplestore import SampleStore
from tests.fakes import agent_folder

X = np.random.default_rng(1).integers(0, 256, (6, 64), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = agent_folder.enrolled(tmp_path / "agent", tmp_path / "authority", days=30)
    store = SampleStore(made.samples, quota_bytes=10**6, keep_s=10.0, clock=lambda: 5.0, event=print)
    store.add("thirds", X[:4], np.zeros(4, np.int64))
    store.add("other", X[4:], np.zeros(2, np.int64))
    return made


def told(folder: Folder, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main(["samples", "--state", str(folder.root), "--json", *arguments]) == 0
    answer: dict[str, object] = json.loads(capsys.readouterr().out)
    return answer


def test_what_is_kept_is_said_and_forgotten_on_request(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # looking changes nothing
        answer = told(folder, capsys)
        assert (answer["models"], answer["quota_bytes"]) == ({"thirds": 4, "other": 2}, 33554432)
    assert main(["samples", "--state", str(folder.root)]) == 0
    assert "thirds: 4 samples" in capsys.readouterr().out
    with folder.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["samples", "--state", str(folder.root), "--forget"]) == 1
        assert "stop it first" in capsys.readouterr().err
    assert told(folder, capsys, "--forget")["models"] == {}
    assert not [path for path in folder.samples.rglob("*") if path.is_file()]


def test_a_key_that_is_lost_is_said(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    (folder.samples / "key").unlink()
    assert main(["samples", "--state", str(folder.root)]) == 0
    assert "2 files of samples are lost" in capsys.readouterr().out


def test_diagnostics_hold_neither_kept_samples_nor_their_key(folder: Folder) -> None:
    packed = archive(folder.root, "", environment={})
    with zipfile.ZipFile(io.BytesIO(packed)) as files:
        content = b"".join(files.read(name) for name in files.namelist())
    secrets = [*X, (folder.samples / "key").read_bytes()[:32]]
    for secret in secrets:
        raw = bytes(secret)
        assert raw not in content
        assert raw.hex().encode() not in content
