import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from contract import tensors
from coordinator import api, app, setup
from coordinator.client import Client, ClientError, Gate, Job, JobFailedError, UnreachableError
from coordinator.errors import SetupError
from coordinator.files import read_token
from coordinator.jobs import cli as jobs_cli
from coordinator.jobs.worker import Record
from coordinator.registry import cli as models_cli
from coordinator.signing.signer import Signer
from tests.fakes.api_server import serving


class Site:
    """A coordinator's API over a new state folder; loops and broker do not run."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.config = setup.init(self.state)
        self.services = app.compose(self.state)
        self.web = app.web(self.services, api.Tokens.load(self.state), started_at=5.0)
        self.client = Client.from_state(self.state, retry_s=5.0)

    @contextmanager
    def serve(self) -> Iterator[None]:
        with serving(self.web, self.state, self.config.api_port):
            try:
                yield
            finally:
                self.client.close()  # first, or the server waits for it

    def close(self) -> None:
        self.client.close()
        self.services.storage.engine.dispose()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def test_a_model_goes_in_and_comes_out_through_the_typed_client(site: Site) -> None:
    with site.serve():
        client = site.client
        assert client.healthy()
        data = tensors.dump({"w": np.zeros(3, np.float32)})
        weights = client.put_blob(data)
        assert client.get_blob(weights.sha256) == data
        entry = {"sha256": weights.sha256}
        snapshot = client.create_snapshot(task="digits", manifest={"files": {"train": entry}})
        fields: dict[str, Any] = {"task": "digits", "weights_sha256": weights.sha256, "metrics": {"accuracy": 0.9}}
        version = client.create_version("digits", snapshot_sha256=snapshot.sha256, **fields)
        gate = Gate(passed=False, reasons=["too large"])
        variant = client.create_variant(
            "digits", 1, name="int8", tflite_sha256=weights.sha256, report={"bytes": 5}, gate=gate
        )
        assert client.get_version("digits", 1).variants == [variant]
        assert client.snapshots() == [snapshot]
        assert [(model.name, model.versions) for model in client.models()] == [("digits", [version.version])]
        assert client.bundles() == []


def test_an_artifact_goes_in_as_a_version_through_the_typed_client(site: Site) -> None:
    with site.serve():
        client = site.client
        artifact = client.put_blob(b"a tflite")
        made = client.create_version("lamps", task="", artifact_sha256=artifact.sha256, metrics={})
        assert (made.weights_sha256, made.artifact_sha256) == ("", artifact.sha256)
        assert client.get_version("lamps", 1) == made
        assert client.gates("lamps") is None


def test_every_list_of_the_control_plane_answers(site: Site) -> None:
    with site.serve():
        client = site.client
        token = client.add_device("meter-1", {"site": "north"})
        assert token.name == "meter-1"
        assert [device.name for device in client.devices("tag:site=north")] == ["meter-1"]
        assert client.device("meter-1").connected is False
        assert client.rollouts() == client.runs() == client.alerts() == client.jobs() == []
        status = client.status()
        assert (status.started_at, status.devices["total"]) == (5.0, 1)
        assert "fieldfare_devices" in client.metrics()


def test_the_commands_print_json_and_nothing_else_when_asked(site: Site) -> None:
    run = CliRunner().invoke
    with site.serve():
        started = run(jobs_cli.app, ["start", "train", '{"epochs": 1}', "--state", str(site.state), "--json"])
        job = json.loads(started.stdout)
        assert (job["kind"], job["spec"], job["state"]) == ("train", {"epochs": 1}, "queued")
        for app_, command in ((jobs_cli.app, ["list"]), (models_cli.app, ["list"]), (models_cli.app, ["bundles"])):
            listed = run(app_, [*command, "--state", str(site.state), "--json"])
            assert isinstance(json.loads(listed.stdout), list)
        shown = run(jobs_cli.app, ["show", job["id"], "--state", str(site.state)])
        assert "queued" in shown.stdout
        cancelled = run(jobs_cli.app, ["cancel", job["id"], "--state", str(site.state)])
        assert cancelled.stdout == f"{job['id']} cancelled\n"
        watched = run(jobs_cli.app, ["watch", job["id"], "--state", str(site.state), "--json"])
        assert watched.exit_code == 1
        assert run(jobs_cli.app, ["start", "train", "[1]", "--state", str(site.state)]).exit_code == 2


def test_a_person_sets_gates_and_overrides_them_with_a_targets_key(site: Site, tmp_path: Path) -> None:
    state = ["--state", str(site.state)]
    gates = tmp_path / "gates.toml"
    gates.write_text("[gates]\nmax_bytes = 4\n[gates.p95_us]\nnano = 900\n")
    with site.serve():
        token = read_token(site.state / "tokens" / "signer")
        with Client(site.client.url, site.state / "pki" / "ca.crt", token, retry_s=5.0) as signing:
            assert Signer(tmp_path / "signer").begin(signing, time.time())
        blob = site.client.put_blob(tensors.dump({"w": np.zeros(3, np.float32)})).sha256
        site.client.create_version("digits", task="digits", weights_sha256=blob, metrics={})
        assert "nobody set gates" in invoke(["gates", "digits", *state])
        assert json.loads(invoke(["gates", "digits", "--set", str(gates), "--json", *state]))["max_bytes"] == 4
        found = site.client.gates("digits")
        assert found is not None
        assert (found.p95_us, found.max_drop) == ({"nano": 900.0}, 0.02)
        failed = Gate(passed=False, reasons=["has 5 bytes, 4 are allowed"])
        site.client.create_variant("digits", 1, name="int8", tflite_sha256=blob, report={}, gate=failed)
        key = ["--key", str(tmp_path / "signer" / "keys" / "targets.pem")]
        told = invoke(["override", "digits", "1", "int8", "--reason", "a field trial", *key, *state])
        assert "has 5 bytes" in told
        assert "a field trial" in invoke(["show", "digits", "1", *state])
        assert site.client.get_version("digits", 1).overrides[0].by == "targets"
        wrong = ["--key", str(tmp_path / "signer" / "keys" / "root.pem")]
        refused = CliRunner().invoke(
            models_cli.app, ["override", "digits", "1", "int8", "--reason", "x", *wrong, *state]
        )
        assert isinstance(refused.exception, ClientError)
        assert refused.exception.status == 403


def invoke(command: list[str]) -> str:
    """What a command of `fieldfare models` prints."""
    ran = CliRunner().invoke(models_cli.app, command, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def test_the_server_s_own_sentence_reaches_the_caller(site: Site) -> None:
    with site.serve(), pytest.raises(ClientError, match="no version 7 of model 'digits'") as caught:
        site.client.get_version("digits", 7)
    assert caught.value.status == 404


def test_a_stranger_and_a_wrong_authority_are_refused(site: Site, tmp_path: Path) -> None:
    other = tmp_path / "other"
    setup.init(other)
    with site.serve():
        ca = site.state / "pki" / "ca.crt"
        with Client(site.client.url, ca, "guess") as stranger, pytest.raises(ClientError) as caught:
            stranger.jobs()
        assert caught.value.status == 403
        with (
            Client(site.client.url, other / "pki" / "ca.crt", "guess", retry_s=0.0) as fooled,
            pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            fooled.jobs()


def test_a_coordinator_that_comes_back_is_waited_for(site: Site) -> None:
    answers: list[Job] = []
    caller = threading.Thread(target=lambda: answers.append(site.client.create_job("train", {}, id="a")))
    caller.start()
    time.sleep(0.5)
    with site.serve():
        caller.join(10)
    assert [job.id for job in answers] == ["a"]


def test_a_coordinator_that_does_not_come_back_is_named(site: Site) -> None:
    with Client.from_state(site.state, retry_s=0.3) as client:
        assert not client.healthy()
        with pytest.raises(UnreachableError, match=f"127.0.0.1:{site.config.api_port} does not answer"):
            client.jobs()


def test_a_call_that_may_have_been_heard_is_not_repeated_unless_it_is_safe(site: Site) -> None:
    """The listener takes a request and hangs up, as a coordinator that is killed."""
    heard: list[int] = []
    with socket.create_server(("127.0.0.1", site.config.api_port)) as listener:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                heard.append(1)
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with Client.from_state(site.state, retry_s=0.5) as client, pytest.raises(UnreachableError):
            client.jobs()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert len(heard) > 1


def test_waiting_for_a_job_shows_its_progress_and_raises_its_error(site: Site) -> None:
    with site.serve():
        good, bad = site.client.create_job("train", {}), site.client.create_job("train", {"n": 1})
        seen: list[str] = []

        def work() -> None:
            for job, outcome in ((good, "succeeded"), (bad, "failed")):
                record = Record(site.services.storage.engine, job.id)
                record.claim(1.0)
                record.report(0.5, "half")
                time.sleep(0.3)
                record.end(outcome, error=None if outcome == "succeeded" else "out of data")

        worker = threading.Thread(target=work)
        worker.start()
        done = site.client.wait_job(
            good.id, timeout_s=10, on_progress=lambda job: seen.append(job.message), poll_s=0.05
        )
        assert done.state == "succeeded"
        assert "half" in seen
        with pytest.raises(JobFailedError, match="out of data"):
            site.client.wait_job(bad.id, timeout_s=10, poll_s=0.05)
        worker.join()
        waiting = site.client.create_job("train", {"n": 2})
        with pytest.raises(UnreachableError, match="still queued after"):
            site.client.wait_job(waiting.id, timeout_s=0.1, poll_s=0.05)


def test_a_folder_without_a_coordinator_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="fieldfare serve"):
        Client.from_state(tmp_path)


def test_no_certificate_authority_is_no_client(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="CA"):
        Client("https://127.0.0.1:1", tmp_path / "ca.crt", "")
