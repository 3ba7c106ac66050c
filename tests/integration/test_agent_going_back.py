"""A real agent takes a bundle back by itself, by a person's order, and when it keeps dying with it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.config import Health
from edge_agent.status import read
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_coordinator import AgentProcess, Coordinator
from tests.fakes.broker_process import BrokerProcess

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow]

UNSURE = 1000.0  # a temperature at which every class is as likely as another


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    broker = BrokerProcess(tmp_path / "broker", "mosquitto")
    running = Coordinator(broker)
    yield running
    running.stop()
    broker.stop()


Start = Callable[..., AgentProcess]


@pytest.fixture
def start(coordinator: Coordinator, tmp_path: Path) -> Iterator[Start]:
    made: list[AgentProcess] = []

    def begin(**health: Any) -> AgentProcess:
        agent = AgentProcess(coordinator, tmp_path / "agent", "meter-1", health=Health(**health))
        made.append(agent)
        agent.start()
        return agent

    yield begin
    for agent in made:
        assert agent.stop() == 0, agent.log.read_text()


def _bring(coordinator: Coordinator, agent: AgentProcess, bundle: bytes) -> None:
    before = len(coordinator.receipts(agent.certificate))
    coordinator.desire(agent.device, coordinator.publish(bundle))
    agent.wait(lambda: _said(coordinator, agent)[before:])


def _said(coordinator: Coordinator, agent: AgentProcess) -> list[tuple[str, int]]:
    return [(receipt.outcome, receipt.bundle.version) for receipt in coordinator.receipts(agent.certificate)]


def _served(agent: AgentProcess) -> int:
    return read(agent.folder.root).models["thirds"].bundle.version


def test_a_bundle_that_is_never_sure_is_rolled_back_by_itself(coordinator: Coordinator, start: Start) -> None:
    agent = start(probation_s=0.5, probation_inferences=20, min_confidence=0.5)
    _bring(coordinator, agent, agent_bundles.make())
    agent.feed("000", *agent_models.samples(30, seed=0))
    agent.wait(lambda: ("healthy", 1) in _said(coordinator, agent))
    _bring(coordinator, agent, agent_bundles.make(version=2, temperature=UNSURE))
    agent.feed("001", *agent_models.samples(30, seed=1))
    agent.wait(lambda: ("rolled-back", 2) in _said(coordinator, agent))
    assert "the mean confidence of 30 inferences is 0.3" in coordinator.receipts(agent.certificate)[-1].reason
    agent.wait(lambda: [bundle.version for bundle in coordinator.hellos[-1].bundles] == [1])
    agent.feed("002", *agent_models.samples(10, seed=2))
    agent.wait(lambda: coordinator.samples() == 70)
    assert _said(coordinator, agent) == [("activated", 1), ("healthy", 1), ("activated", 2), ("rolled-back", 2)]
    told = [event["event"] for event in agent.events()]
    assert [word for word in told if word in {"healthy", "rolled-back"}] == ["healthy", "rolled-back"]


def test_a_person_rolls_back_while_the_agent_runs(coordinator: Coordinator, start: Start) -> None:
    agent = start(probation_s=0.0, probation_inferences=0)
    for version in (1, 2):
        _bring(coordinator, agent, agent_bundles.make(version=version))
        agent.wait(lambda version=version: ("healthy", version) in _said(coordinator, agent))
    command = [sys.executable, "-m", "edge_agent", "rollback", "--state", str(agent.folder.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "serves thirds:1 float\n"), done.stderr
    agent.wait(lambda: ("rolled-back", 2) in _said(coordinator, agent))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, "nothing served before it" in done.stderr) == (1, True)
    _bring(coordinator, agent, agent_bundles.make(version=2))
    assert _said(coordinator, agent)[-1] == ("refused", 2)
    assert _served(agent) == 1


def test_an_agent_that_dies_again_and_again_with_a_new_bundle_goes_back(coordinator: Coordinator, start: Start) -> None:
    agent = start(probation_inferences=100_000, max_crashes=2)
    _bring(coordinator, agent, agent_bundles.make())
    _bring(coordinator, agent, agent_bundles.make(version=2))
    agent.kill()
    for starts in (2, 3):
        agent.start()
        agent.wait(lambda starts=starts: len([e for e in agent.events() if e["event"] == "started"]) == starts)
        assert _served(agent) == 2
        agent.kill()
    agent.start()
    agent.wait(lambda: ("rolled-back", 2) in _said(coordinator, agent))
    assert "crashed 3 times in a row" in coordinator.receipts(agent.certificate)[-1].reason
    assert _served(agent) == 1


def test_a_new_bundle_that_the_disk_damaged_together_with_the_memory_leaves_the_one_before(
    coordinator: Coordinator, start: Start
) -> None:
    agent = start()
    for version in (1, 2):
        _bring(coordinator, agent, agent_bundles.make(version=version))
    slot = read(agent.folder.root).models["thirds"].slot
    agent.kill()
    path = agent.folder.slots / "thirds" / slot / "bundle.zip"
    path.write_bytes(path.read_bytes()[:-1])
    agent.folder.state.write_bytes(b"no database any more" * 500)
    coordinator.desire(agent.device, coordinator.publish(agent_bundles.make()))
    agent.start()
    agent.wait(lambda: _said(coordinator, agent)[-1:] == [("activated", 1)])
    agent.feed("000", *agent_models.samples(50, seed=0))
    agent.wait(lambda: coordinator.samples() == 50)
