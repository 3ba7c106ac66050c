"""A device whose clock is wrong, as a process: at 1970 it goes on, at 2100 it serves what it has and says why."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.status import read
from tests.fakes import agent_bundles, wrong_clock
from tests.fakes.agent_coordinator import AgentProcess, Coordinator
from tests.fakes.broker_process import BrokerProcess

pytestmark = [pytest.mark.slow, pytest.mark.mosquitto]
YEAR_2100 = 4_102_444_800.0


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    broker = BrokerProcess(tmp_path / "broker", "mosquitto")
    running = Coordinator(broker)
    yield running
    running.stop()
    broker.stop()


def test_a_device_that_wakes_up_in_1970_connects_and_activates_what_is_signed(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    agent = AgentProcess(coordinator, tmp_path / "agent", "meter-1970")
    agent.options = {"env": {**os.environ, **wrong_clock.environment(tmp_path, 86400.0)}}
    agent.start()
    try:
        ref = coordinator.publish(agent_bundles.make())
        coordinator.desire(agent.device, ref)
        (receipt,) = agent.wait(lambda: coordinator.receipts(agent.certificate), 60)
        assert (receipt.outcome, receipt.bundle) == ("activated", ref)
        assert receipt.sent_at < 1e6
    finally:
        assert agent.stop() == 0


def test_a_device_at_2100_serves_what_it_has_and_goes_on_once_its_clock_is_set(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    agent = AgentProcess(coordinator, tmp_path / "agent", "meter-2100")
    agent.start()
    first = coordinator.publish(agent_bundles.make())
    coordinator.desire(agent.device, first)
    agent.wait(lambda: coordinator.receipts(agent.certificate), 60)
    assert agent.stop() == 0

    agent.options = {"env": {**os.environ, **wrong_clock.environment(tmp_path, YEAR_2100)}}
    agent.start()
    try:
        agent.wait(lambda: "certificate has expired" in agent.log.read_text(), 60)
        assert read(agent.folder.root).models[first.model].bundle == first
        assert agent.process is not None
        assert agent.process.poll() is None
    finally:
        assert agent.stop() == 0
    assert "Traceback" not in agent.log.read_text()

    agent.options = {}
    agent.start()
    try:
        second = coordinator.publish(agent_bundles.make(version=2))
        coordinator.desire(agent.device, second)
        agent.wait(lambda: read(agent.folder.root).models[second.model].bundle == second, 60)
    finally:
        assert agent.stop() == 0
