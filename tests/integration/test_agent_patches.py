"""An agent as a process takes a new bundle as a patch from the one that serves, and the whole one where that fails."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent.state import State
from tests.fakes import agent_bundles
from tests.fakes.agent_coordinator import AgentProcess, Coordinator
from tests.fakes.broker_process import BrokerProcess

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow]
NAME = "".join(map(chr, np.random.default_rng(0).integers(0x4E00, 0x9FFF, 70_000)))  # random, and JSON all the same


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    broker = BrokerProcess(tmp_path / "broker", "mosquitto")
    running = Coordinator(broker)
    yield running
    running.stop()
    broker.stop()


@pytest.fixture
def agent(coordinator: Coordinator, tmp_path: Path) -> Iterator[AgentProcess]:
    running = AgentProcess(coordinator, tmp_path / "agent", "meter-1")
    running.start()
    yield running
    assert running.stop() == 0, running.log.read_text()


def update(coordinator: Coordinator, agent: AgentProcess, version: int) -> tuple[str, set[str]]:
    """Bring a version onto the device; its digest, and the digests of what was sent in blocks for it."""
    before = len(coordinator.receipts(agent.certificate))
    coordinator.served.clear()
    ref = coordinator.publish(agent_bundles.make(version=version, labels=["low", "middle", NAME]))
    coordinator.desire(agent.device, ref)
    receipts = agent.wait(lambda: coordinator.receipts(agent.certificate)[before:])
    assert [(receipt.outcome, receipt.bundle) for receipt in receipts] == [("activated", ref)]
    return ref.sha256, {sha256 for sha256, _ in coordinator.served}


def test_updates_come_as_patches_and_a_broken_patch_ends_in_the_whole_bundle(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    first, sent = update(coordinator, agent, 1)
    assert first not in sent
    second, sent = update(coordinator, agent, 2)
    assert second not in sent
    assert sum(len(coordinator.blobs[sha256]) for sha256 in sent) < len(coordinator.blobs[second]) // 50
    coordinator.spoil_patches = True
    third, sent = update(coordinator, agent, 3)
    assert third in sent
    assert list(dict.fromkeys(coordinator.asked_patches)) == [("", first), (first, second), (second, third)]
    assert agent.stop() == 0
    event = State(agent.folder.state, outbox_id="x").last_event("patch")
    assert event is not None
    assert "the whole bundle comes" in event.text
