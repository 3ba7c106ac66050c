"""A coordinator as a person starts it: all roles as processes, killed and stopped."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator import config, setup
from coordinator.client import Client, ClientError, Status
from coordinator.jobs import processes

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


class Serving:
    """`fieldfare serve` on a new state folder."""

    def __init__(self, state: Path, *options: str) -> None:
        self.state = state
        self._options = options
        self.start()

    def start(self) -> None:
        noted = self.state / "processes.json"
        before = noted.read_bytes() if noted.exists() else b""  # of a supervisor that was killed
        self.process = serve(self.state, *self._options)
        until(lambda: (noted.exists() and noted.read_bytes() != before) or None)
        self.client = Client.from_state(self.state)
        self.status()

    def status(self) -> Status:
        """Once the coordinator answers, the gateway is connected, and the signer has begun."""

        def look() -> Status | None:
            try:
                status = self.client.status()
            except ClientError:
                return None
            return status if status.broker["connected"] and status.signing["published"] else None

        return until(look)

    def pid(self, role: str) -> int:
        return int(json.loads((self.state / "processes.json").read_bytes())[role]["pid"])

    def log(self, role: str) -> str:
        return (self.state / "logs" / f"{role}.log").read_text()

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate(timeout=60)


def serve(state: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "coordinator", "--state", str(state), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def until(look: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while (found := look()) is None:
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
    return found


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def serving(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Serving]:
    made = Serving(tmp_path / "state", "--broker", request.param)
    yield made
    made.close()


def test_whatever_is_killed_comes_back_and_a_stop_leaves_nothing(serving: Serving) -> None:
    kind = config.load(serving.state).broker
    assert serving.status().broker["kind"] == kind
    for role in ("coordinator", "broker", "signer"):
        before = serving.pid(role)
        os.kill(before, signal.SIGKILL)
        until(lambda role=role, before=before: serving.pid(role) != before or None)
        serving.status()

    serving.client.create_job("unheard-of", {}, id="a")
    until(lambda: serving.client.job("a").state == "failed" or None)
    roles = [serving.pid(role) for role in ("coordinator", "broker", "signer")]
    serving.process.terminate()
    assert serving.process.wait(30) == 0
    assert [processes.started(pid) for pid in roles] == [None] * 3
    assert (serving.process.stdout or sys.stdin).read() == ""
    assert "Traceback" not in serving.log("coordinator")


def test_a_supervisor_that_was_killed_leaves_a_folder_that_starts_again(serving: Serving) -> None:
    serving.client.add_device("meter-1")
    before = [serving.pid(role) for role in ("coordinator", "broker", "signer")]
    old = serving.process
    old.kill()
    old.communicate()
    serving.client.close()
    serving.start()
    assert [device.name for device in serving.client.devices()] == ["meter-1"]
    roles = [serving.pid(role) for role in ("coordinator", "broker", "signer")]
    serving.close()
    assert [processes.started(pid) for pid in [*before, *roles]] == [None] * 6


def test_a_second_coordinator_on_the_same_folder_is_refused_with_a_sentence(serving: Serving) -> None:
    second = serve(serving.state)
    _, said = second.communicate(timeout=60)
    assert second.returncode != 0
    assert "runs on this state folder already" in said
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    state = tmp_path / "state"
    made = setup.init(state)
    with socket.create_server(("127.0.0.1", made.api_port)):
        process = serve(state, "--role", "coordinator")
        _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert f"port {made.api_port}" in said
    assert "Traceback" not in said


def test_what_an_operator_wrote_stays(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / config.FILE).write_text('smallest_cohort = 2\n[policy]\naction = "run"\n')
    process = serve(state, "--init-only", "--broker", "mosquitto", "--json")
    out, _ = process.communicate(timeout=60)
    first = config.load(state)
    assert (first.smallest_cohort, first.policy.action, first.broker) == (2, "run", "mosquitto")
    assert json.loads(out)["url"] == f"https://127.0.0.1:{first.api_port}"
    assert setup.init(state) == first
    secrets = [*(state / "tokens").iterdir(), *(state / "pki").glob("*.key"), *(state / "signer" / "keys").iterdir()]
    assert {oct(path.stat().st_mode & 0o777) for path in [*secrets, state / config.FILE]} == {"0o600"}
    assert oct(state.stat().st_mode & 0o777) == "0o700"


def test_a_signer_elsewhere_needs_its_own_folder_the_authority_and_a_token(tmp_path: Path) -> None:
    state, nowhere, token = tmp_path / "state", tmp_path / "nowhere", tmp_path / "token"
    made = setup.init(state)
    shutil.copy(state / "pki" / "ca.crt", tmp_path / "ca.crt")
    token.write_text((state / "tokens" / "signer").read_text())
    url = f"https://127.0.0.1:{made.api_port}"
    options = ["--role", "signer", "--signer-state", str(tmp_path / "keys"), "--url", url]
    options += ["--ca", str(tmp_path / "ca.crt"), "--token-file", str(token)]
    token.chmod(0o640)
    refused = serve(nowhere, *options)
    assert "chmod 600" in refused.communicate(timeout=60)[1]
    token.chmod(0o600)
    processes = [serve(state, "--role", "coordinator"), serve(nowhere, *options)]
    try:
        with Client.from_state(state) as client:
            until(lambda: client.status().signing["published"] or None)
    finally:
        for process in processes:
            process.terminate()
        said = [process.communicate(timeout=60) for process in processes]
    assert "Traceback" not in str(said)
    assert not nowhere.exists()
    assert not (state / "signer").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--role", "signer", "--url", "https://127.0.0.1:1"], "a signer elsewhere is"),
        (["--url", "https://127.0.0.1:1"], "a signer elsewhere is"),
        (["--role", "signer", "--url", "http://127.0.0.1:1", "--ca", "a", "--token-file", "b"], "HTTPS only"),
        (["--role", "signer", "--url", "https://127.0.0.1:1", "--ca", "a", "--token-file", "b"], "b: cannot read"),
    ],
)
def test_what_a_signer_elsewhere_lacks_is_said(tmp_path: Path, options: list[str], sentence: str) -> None:
    process = serve(tmp_path / "none", "--signer-state", str(tmp_path / "keys"), *options)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("database", "sentence"),
    [
        ("postgresql+psycopg://fieldfare:hush@127.0.0.1:1/none", "the database does not answer"),
        ("oracle+unheard://x", "database"),
        ("hush", "database"),
    ],
)
def test_a_database_that_is_not_there_is_said_without_its_password(
    tmp_path: Path, database: str, sentence: str
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / config.FILE).write_text(f'database = "{database}"\n')
    process = serve(state, "--init-only")
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert sentence in said
    assert "Traceback" not in said
    assert "hush" not in said
