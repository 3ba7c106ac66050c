"""Every file of an agent's folder truncated, changed, removed or unreadable; a full disk; a clock that is far off.

What must happen is in the table of docs/devices.md: the agent serves a whole, verified bundle, or it says in a sentence
which file is wrong and what to do, and ends with status 1. Never a traceback, never another outcome at the next start.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from contract import tensors
from edge_agent import trust
from edge_agent.client import Client
from edge_agent.config import Folder
from edge_agent.errors import TrustError, UnavailableError
from edge_agent.status import read
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_coordinator import AgentProcess, Coordinator
from tests.fakes.broker_process import BrokerProcess

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


class Lived(NamedTuple):
    """An agent's folder after a life that a kill ended: two versions in its slots, and everything else it makes."""

    folder: Path
    coordinator: Coordinator


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    root = tmp_path_factory.mktemp("life")
    (root / "broker").mkdir()
    broker = BrokerProcess(root / "broker", "embedded")
    coordinator = Coordinator(broker)
    agent = AgentProcess(coordinator, root / "agent", "meter-1")
    agent.start()
    for version in (1, 2):
        coordinator.desire("meter-1", coordinator.publish(agent_bundles.make(version=version)), f"r{version}")
        agent.wait(lambda: len(coordinator.receipts(agent.certificate)) == version)  # noqa: B023 - waited for at once
    x, y = agent_models.samples(60, seed=1)
    agent.feed("001", x, y)
    agent.wait(lambda: coordinator.samples() >= 60)
    with Client(socket=root / "agent" / "api.sock") as app:
        app.add_samples("thirds", x[:20].astype(np.float32), y[:20])
    agent.kill()
    for name in ("log", "events", "api.sock"):
        (root / "agent" / name).unlink(missing_ok=True)
    settings = root / "agent" / "agent.toml"  # nobody is there to heal it before it can be looked at
    settings.write_text(settings.read_text().replace(f"broker_port = {broker.port}\n", "broker_port = 1\n"))
    yield Lived(root / "agent", coordinator)
    coordinator.stop()
    broker.stop()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path: Path) -> None:
    """One bit in the middle: text is UTF-8 no more."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x80
    path.write_bytes(content)


def make_unreadable(path: Path) -> None:
    """A folder in its place: modes do not keep root out."""
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": cut,
    "changed": change,
    "removed": Path.unlink,
    "unreadable": make_unreadable,
}
# where no agent can be without the file: it ends with a sentence that names it
NEEDED = ("agent.toml", "pki/device.key", "pki/device.crt", "pki/ca.crt")


def _run(folders: list[Path], **variables: str) -> list[list[dict[str, Any]]]:
    command = [sys.executable, "-m", "tests.fakes.agent_starts", *map(str, folders)]
    variables = {**os.environ, **variables}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=variables, timeout=60 + 20 * len(folders)
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _active_slot(folder: Path) -> str:
    return read(folder).models["thirds"].slot


def test_the_life_left_every_kind_of_file(lived: Lived) -> None:
    found = _files(lived.folder)
    for needed in (*NEEDED, "state.sqlite", "tuf/root.json", "tuf/metadata/timestamp.json", "source/001.safetensors"):
        assert needed in found
    assert {"slots/thirds/a/bundle.zip", "slots/thirds/b/bundle.zip"} <= set(found)
    assert any(name.startswith("samples/") for name in found)


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_file_damaged_in_turn_leaves_an_agent_that_serves_or_says_what_to_do(
    lived: Lived, tmp_path: Path, damage: str
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(lived.folder, whole)
    slot = _active_slot(shutil.copytree(lived.folder, tmp_path / "looked-at"))
    names = [name for name in _files(whole) if (whole / name).stat().st_size or damage in {"removed", "unreadable"}]
    folders = []
    for name in names:
        folder = shutil.copytree(whole, tmp_path / name.replace("/", "_"))
        DAMAGES[damage](folder / name)
        folders.append(folder)
    for name, folder, starts in zip(names, folders, _run(folders), strict=True):
        case = f"{name} {damage}: {starts}"
        for start in starts:
            assert "Traceback" not in start["said"], case
            assert "failed unexpectedly" not in start["said"], case
        if name == "agent.toml" and damage == "truncated":  # what is left may be whole TOML with defaults for the rest
            assert {start["status"] for start in starts} <= {0, 1}, case
        elif name in NEEDED or (name == "lock" and damage == "unreadable"):
            assert [start["status"] for start in starts] == [1, 1], case
            assert all(str(folder / name) in start["said"] for start in starts), case
        else:
            assert [start["status"] for start in starts] == [0, 0], case
            expected = 1 if name == f"slots/thirds/{slot}/bundle.zip" else 2
            assert [start["serves"] for start in starts] == [[expected], [expected]], case


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_file_of_trust_damaged_in_turn_is_fetched_again_or_said(lived: Lived, tmp_path: Path, damage: str) -> None:
    repository = lived.coordinator.repository
    ref = agent_bundles.ref(agent_bundles.make(version=2))
    for name in [name for name in _files(lived.folder) if name.startswith("tuf/metadata/")]:
        folder = Folder(shutil.copytree(lived.folder, tmp_path / name.replace("/", "_")))
        DAMAGES[damage](folder.root / name)
        outcome = _look_up(folder, ref.target, lambda name, _limit: repository.files.get(name))
        assert outcome == ref.sha256 or (damage == "unreadable" and "died" not in outcome), f"{name}: {outcome}"


def _look_up(folder: Folder, target: str, fetch: Any) -> str:
    """The digest of a target, or why there is none."""
    try:
        return trust.lookup(folder.tuf_root.read_bytes(), folder.tuf_metadata, target, fetch).sha256
    except (TrustError, UnavailableError) as error:
        return str(error)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_does_not_keep_the_agent_from_serving_and_a_freed_one_heals_it(
    lived: Lived, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let root mount a file system")
    try:
        folder = shutil.copytree(lived.folder, disk / "agent")
        _fill(disk / "ballast")
        ((first, second),) = _run([folder])
        for start in (first, second):
            assert "Traceback (most recent call last)" not in start["said"].replace("\\n", "\n") or _is_full(start)
            assert (start["status"], start["serves"]) == (0, [2]) or _says_full(start), start
        (disk / "ballast").unlink()
        (starts,) = _run([folder])
        assert [(start["status"], start["serves"]) for start in starts] == [(0, [2]), (0, [2])]
    finally:
        subprocess.run(["umount", disk], check=True)


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass


def _is_full(start: dict[str, Any]) -> bool:
    return "No space left" in start["said"] or "disk is full" in start["said"]


def _says_full(start: dict[str, Any]) -> bool:
    return start["status"] == 1 and _is_full(start) and start["said"].splitlines()[-1].startswith("edge-agent: ")


@pytest.mark.parametrize("now", [86_400, 4_115_491_200], ids=["1970", "2100"])
def test_a_clock_far_off_does_not_keep_the_agent_from_serving_and_inferring(
    lived: Lived, tmp_path: Path, now: int
) -> None:
    folder = shutil.copytree(lived.folder, tmp_path / "agent")
    x, _ = agent_models.samples(30, seed=3)
    (folder / "source" / "002.safetensors").write_bytes(tensors.dump({"x": x}))
    before = read(folder).inferences
    (starts,) = _run([folder], AGENT_CLOCK=str(now))
    assert [(start["status"], start["serves"]) for start in starts] == [(0, [2]), (0, [2])]
    for start in starts:
        assert "failed unexpectedly" not in start["said"]
        assert abs(json.loads(start["said"].splitlines()[0])["at"] - now) < 3600  # it was this clock that it read
    assert read(folder).inferences == before + 30
