"""The doctor against a real broker: it sees what the agent would see, and disturbs nobody."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import topics
from coordinator import pki
from edge_agent import doctor
from edge_agent.doctor import network
from tests.fakes import agent_bundles, agent_folder
from tests.fakes.agent_coordinator import AgentProcess, Coordinator
from tests.fakes.broker_process import BrokerProcess, Client


@pytest.fixture(scope="module", params=["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def broker(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[BrokerProcess]:
    running = BrokerProcess(tmp_path_factory.mktemp("broker"), request.param)
    yield running
    running.stop()


def look(root: Path) -> doctor.Finding:
    (finding,) = doctor.examine(root, {}, time.time(), [("broker", network.broker)])
    return finding


def test_a_broker_that_takes_the_device_is_fine_and_what_it_keeps_for_the_agent_stays(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    folder = agent_folder.enrolled(tmp_path / "agent", broker.state, "meter-7", broker_port=broker.port)
    agent = Client(broker, "meter-7", clean=False)
    agent.subscribe(topics.all_down("meter-7"))
    agent.stop()
    coordinator = Client(broker, "coordinator")
    assert coordinator.publish(topics.down("meter-7", "round"), b"work")
    finding = look(folder.root)
    assert (finding.outcome, "takes this device" in finding.found) == ("ok", True)
    again = Client(broker, "meter-7", clean=False)
    deadline = time.monotonic() + 20
    while not again.messages and time.monotonic() < deadline:
        time.sleep(0.02)
    assert again.payloads() == [b"work"]
    again.stop()
    coordinator.stop()


def test_a_broker_of_another_fleet_is_found_out(broker: BrokerProcess, tmp_path: Path) -> None:
    pki.create(tmp_path / "stranger")
    folder = agent_folder.enrolled(tmp_path / "agent", tmp_path / "stranger", broker_port=broker.port)
    finding = look(folder.root)
    assert (finding.outcome, "is not trusted" in finding.found) == ("fail", True)


def test_a_device_whose_certificate_the_broker_does_not_take_is_told_so(broker: BrokerProcess, tmp_path: Path) -> None:
    pki.create(tmp_path / "stranger")
    folder = agent_folder.enrolled(tmp_path / "agent", tmp_path / "stranger", broker_port=broker.port)
    folder.ca.write_bytes((broker.state / "pki" / "ca.crt").read_bytes())
    finding = look(folder.root)
    assert finding.outcome == "fail"
    assert "revoked" in finding.remedy or "certificate" in finding.remedy


@pytest.mark.slow
def test_the_session_of_an_agent_that_runs_is_left_alone(broker: BrokerProcess, tmp_path: Path) -> None:
    coordinator = Coordinator(broker)
    agent = AgentProcess(coordinator, tmp_path / "agent", "meter-8")
    agent.start()
    coordinator.desire("meter-8", coordinator.publish(agent_bundles.make()))
    agent.wait(lambda: coordinator.receipts(agent.certificate))
    command = [sys.executable, "-m", "edge_agent", "doctor", "--state", str(agent.folder.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "the running agent holds the session" in done.stdout, done.stdout + done.stderr
    assert "golden vectors hold" in done.stdout
    assert agent.stop() == 0
    assert [event["event"] for event in agent.events()].count("connected") == 1
    coordinator.stop()
