"""A run in its own process, killed with SIGKILL at any moment, over the real API, database and training model."""

import asyncio
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from sqlalchemy import select

from contract import codec, profile, tensors
from coordinator import api, app, setup
from coordinator.app import Services
from coordinator.jobs.tables import jobs
from coordinator.registry.tables import model_versions
from coordinator.rounds.tables import instructions, run_rounds
from tests.fakes.round_state import MODEL, TrainingDevice, add_devices, deliver, register

pytestmark = pytest.mark.slow

RUN = """
import sys, time
from pathlib import Path
from coordinator.client import Client, JobContext
from coordinator.rounds.job import run
state, job, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with Client.from_state(state) as client:
    context = JobContext(
        id=job, spec={"run": name}, folder=state, state=state, client=client, resumed=False,
        report=lambda fraction, message: print(message, flush=True),
    )
    print(run(context))
"""


@contextmanager
def served(state: Path) -> Iterator[Services]:
    """The real API over HTTPS in a thread, without broker, gateway and runner."""
    services = app.compose(state)
    web = app.web(services, api.Tokens.load(state), started_at=time.time())
    settings = uvicorn.Config(
        web,
        log_config=None,
        lifespan="off",
        ws="none",
        ssl_certfile=state / "pki" / "api.crt",
        ssl_keyfile=str(state / "pki" / "api.key"),
    )
    server = uvicorn.Server(settings)
    with socket.create_server((services.config.host, services.config.api_port)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        try:
            yield services
        finally:
            server.should_exit = True
            thread.join()
            services.storage.engine.dispose()


def start(state: Path, run) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, str(state), run.job, run.id]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def drive(services: Services, state: Path, run, *, kills: list[int]) -> tuple[dict[str, TrainingDevice], str]:
    """Run to the end; the process is killed after so many instructions were delivered to it."""
    devices = {name: TrainingDevice(name, seed) for seed, name in enumerate(run.cohort)}
    process = start(state, run)
    delivered, deadline = 0, time.monotonic() + 120
    try:
        while process.poll() is None and time.monotonic() < deadline:
            delivered += deliver(services.rounds, services.storage, devices, time.time())
            if kills and delivered >= kills[0]:
                kills.pop(0)
                time.sleep(random.random() * 0.2)
                process.send_signal(signal.SIGKILL)
                process.communicate()
                process = start(state, run)
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            process.kill()
        output = process.communicate()[0]
    assert process.returncode == 0, output
    assert kills == []
    return devices, output


def launch(services: Services, **settings: object):
    with services.storage.engine.begin() as connection:
        run = services.rounds.launch_query(connection, model=MODEL, cohort="all", settings=settings, now=time.time())
        connection.execute(jobs.update().values(state="running"))
    return run


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    setup.init(folder, overrides={"smallest_cohort": 2})
    return folder


def result(services: Services, run) -> tuple[str, dict]:
    with services.storage.engine.begin() as connection:
        row = connection.execute(select(model_versions).where(model_versions.c.run == run.id)).mappings().one()
        assert services.rounds.status(connection, run.id).run.state == "succeeded"
        return row["weights_sha256"], dict(row)


def test_a_killed_run_ends_in_the_very_state_of_an_undisturbed_one(state):
    with served(state) as services:
        add_devices(services.storage, register(services.storage), "a", "b", "c")
        base = {"transform_sha256": "0" * 64, "parameters": 9, "seed": 0, "epochs": 30, "seconds": 7.5}
        with services.storage.engine.begin() as connection:
            connection.execute(model_versions.update().values(details=base))
        first = launch(services, rounds=3, epochs=1, learning_rate=0.1)
        drive(services, state, first, kills=[])
        second = launch(services, rounds=3, epochs=1, learning_rate=0.1)
        devices, _ = drive(services, state, second, kills=[1, 5, 10, 14])
        expected, made = result(services, first)[0], result(services, second)[1]
        assert made["weights_sha256"] == expected
        assert all(len(device.asked) == len(set(device.asked)) == 5 for device in devices.values())
        with services.storage.engine.begin() as connection:
            asked = connection.execute(select(instructions.c.id).where(instructions.c.run == second.id)).all()
            committed = connection.execute(select(run_rounds).where(run_rounds.c.run == second.id)).mappings().all()
        assert len(asked) == 15
        assert len(committed) == 5
        assert made["parents"] == [1]
        assert made["details"] == {
            "transform_sha256": "0" * 64,
            "parameters": 9,
            "federated": {"cohort": 3, "bundle": second.bundle_sha256},
        }
        assert {"before", "after", "rounds", "accuracy", "loss"} <= set(made["metrics"])
        check_reference(services, made["reference_sha256"])
        tensors.load(services.storage.blobs.get(made["weights_sha256"]))


def check_reference(services: Services, digest: str) -> None:
    reference = codec.decode_json(services.storage.blobs.get(digest), profile.Reference, limit=1 << 20)
    profile.check_counts(reference.spec, reference.counts)
    assert reference.counts.samples == 180  # three devices' evaluations; no windows were sent


def test_a_finished_run_that_is_started_again_gives_its_result_at_once(state):
    with served(state) as services:
        add_devices(services.storage, register(services.storage), "a", "b")
        run = launch(services, rounds=1, epochs=1)
        drive(services, state, run, kills=[])
        version = result(services, run)[1]["version"]
        assert f"'version': {version}" in start(state, run).communicate()[0]


def test_a_run_without_enough_replies_fails_and_says_whose(state):
    with served(state) as services:
        add_devices(services.storage, register(services.storage), "a", "b")
        run = launch(services, rounds=1, epochs=1, round_timeout_s=0.5)
        process = start(state, run)
        assert "a: no reply in time; b: no reply in time" in process.communicate()[0]
        assert process.returncode != 0
        with services.storage.engine.begin() as connection:
            found = services.rounds.status(connection, run.id).run
        assert found.state == "failed"
        assert "0 good replies of 2" in found.error


def test_the_process_of_a_run_loads_no_framework() -> None:
    code = "import sys, coordinator.rounds.job; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert "flwr" in shown
    assert not {"tensorflow", "torch", "ray", "keras"} & set(shown)
