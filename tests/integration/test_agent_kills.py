"""A kill -9 at any moment loses nothing, and a broker that goes away comes back to the same agent."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from contract import limits, messages
from edge_agent.config import Health
from edge_agent.status import read
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_coordinator import AgentProcess, Coordinator
from tests.fakes.broker_process import BrokerProcess

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    running = BrokerProcess(tmp_path / "broker", "mosquitto")
    yield running
    running.stop()


@pytest.fixture
def coordinator(broker: BrokerProcess) -> Iterator[Coordinator]:
    running = Coordinator(broker)
    yield running
    running.stop()


@pytest.fixture
def agent(coordinator: Coordinator, tmp_path: Path) -> Iterator[AgentProcess]:
    health = Health(max_crashes=1000)  # here the model is not to blame for the kills
    running = AgentProcess(coordinator, tmp_path / "agent", "meter-1", health=health)
    yield running
    running.wait(running.has_started)  # the last kill may have been a moment ago
    assert running.stop() == 0, running.log.read_text()


def test_an_agent_that_is_killed_again_and_again_counts_every_sample_once(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    agent.start()
    coordinator.desire(agent.device, coordinator.publish(agent_bundles.make()))
    agent.wait(lambda: coordinator.receipts(agent.certificate))
    random = np.random.default_rng(0)
    for index in range(60):
        agent.feed(f"{index:03d}", *agent_models.samples(17, seed=index))
        if index % 10 == 9:
            time.sleep(random.uniform(0.0, 0.25))
            agent.kill()
            agent.start()
    agent.wait(lambda: coordinator.samples() >= 60 * 17)
    time.sleep(1.5)  # two more resends: none may count again
    assert coordinator.samples() == 60 * 17
    assert [receipt.outcome for receipt in coordinator.receipts(agent.certificate)] == ["activated"]


def test_reports_that_were_never_confirmed_survive_a_kill(coordinator: Coordinator, agent: AgentProcess) -> None:
    agent.start()
    coordinator.desire(agent.device, coordinator.publish(agent_bundles.make()))
    agent.wait(lambda: coordinator.receipts(agent.certificate))
    coordinator.deaf = True
    agent.feed("000", *agent_models.samples(70, seed=0))
    agent.wait(lambda: read(agent.folder.root).pending_reports == 2)
    agent.kill()
    assert read(agent.folder.root).pending_reports == 2
    assert not read(agent.folder.root).running
    coordinator.deaf = False
    agent.start()
    agent.wait(lambda: coordinator.samples() == 70)


def test_a_pull_that_was_cut_is_resumed_where_it_stopped(coordinator: Coordinator, agent: AgentProcess) -> None:
    padding = "".join(map(chr, np.random.default_rng(0).integers(0x4E00, 0x9FFF, 100_000)))
    bundle = agent_bundles.make(labels=["low", "middle", padding[:70_000]])
    assert len(bundle) > limits.BLOCK_BYTES
    ref = coordinator.publish(bundle)
    part = agent.folder.staging / f"{ref.sha256}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bundle[: limits.BLOCK_BYTES + 1000])
    agent.start()
    coordinator.desire(agent.device, ref)
    agent.wait(lambda: coordinator.receipts(agent.certificate))
    assert (ref.sha256, 0) not in coordinator.served
    assert (ref.sha256, 1) in coordinator.served
    assert not part.exists()


def test_training_that_was_killed_is_begun_again_and_answered_once(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    agent.start()
    ref = coordinator.publish(agent_bundles.make())
    coordinator.desire(agent.device, ref)
    agent.feed("000", *agent_models.samples(200, seed=0))
    agent.wait(lambda: coordinator.samples() == 200)
    coordinator.instruct(agent.device, ref.sha256, agent_models.weights(), epochs=400)
    agent.wait(lambda: list(agent.folder.staging.glob("job-*/job.msgpack")))
    agent.kill()
    agent.start()
    (reply,) = agent.wait(lambda: coordinator.bodies(messages.RoundReply))
    assert (reply.error, reply.examples) == ("", 200)
    assert not list(agent.folder.staging.iterdir())


def test_a_slot_that_the_disk_broke_is_rolled_back_and_then_healed(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    agent.start()
    first = coordinator.publish(agent_bundles.make())
    coordinator.desire(agent.device, first)
    agent.wait(lambda: coordinator.receipts(agent.certificate))
    second = coordinator.publish(agent_bundles.make(version=2))
    coordinator.desire(agent.device, second)
    agent.wait(lambda: coordinator.receipts(agent.certificate)[1:])
    agent.kill()
    path = agent.folder.slots / second.model / read(agent.folder.root).models[second.model].slot / "bundle.zip"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    agent.start()
    receipts = agent.wait(lambda: (all_of := coordinator.receipts(agent.certificate)) and len(all_of) == 4 and all_of)
    assert [(receipt.outcome, receipt.bundle.version) for receipt in receipts[2:]] == [
        ("rolled-back", 2),
        ("activated", 2),
    ]


def test_the_session_survives_a_broker_that_is_restarted(
    broker: BrokerProcess, coordinator: Coordinator, agent: AgentProcess
) -> None:
    agent.start()
    coordinator.desire(agent.device, coordinator.publish(agent_bundles.make()))
    agent.wait(lambda: coordinator.receipts(agent.certificate))
    coordinator.stop()
    broker.stop()
    agent.feed("000", *agent_models.samples(30, seed=0))
    agent.wait(lambda: not read(agent.folder.root).connected)
    broker.start()
    again = Coordinator(broker)
    try:
        agent.wait(lambda: again.samples() == 30)
    finally:
        again.stop()


def test_a_killed_agent_is_announced_by_its_last_will(coordinator: Coordinator, agent: AgentProcess) -> None:
    agent.start()
    agent.wait(lambda: coordinator.hellos)
    agent.kill()
    agent.wait(lambda: coordinator.gone)
    assert coordinator.gone[0].boot == coordinator.hellos[0].boot
    agent.start()
    agent.wait(lambda: len({hello.boot for hello in coordinator.hellos}) == 2)


def test_an_agent_that_is_killed_while_it_updates_activates_once(coordinator: Coordinator, agent: AgentProcess) -> None:
    random = np.random.default_rng(1)
    for version in range(1, 5):
        agent.start()
        agent.wait(lambda: read(agent.folder.root).connected)
        coordinator.desire(agent.device, coordinator.publish(agent_bundles.make(version=version)))
        time.sleep(random.uniform(0.0, 0.9))
        agent.kill()
        agent.start()
        agent.wait(lambda v=version: [r.bundle.version for r in coordinator.receipts(agent.certificate)][v - 1 :])
        agent.kill()
    agent.start()
    agent.wait(lambda: (status := read(agent.folder.root)).connected and not status.pending_reports)
    receipts = coordinator.receipts(agent.certificate)
    assert [(receipt.outcome, receipt.bundle.version) for receipt in receipts] == [
        ("activated", version) for version in range(1, 5)
    ]
