"""Whatever the link does, every receipt and every profile window arrives, and each counts once."""

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import limits
from contract.messages import BlobRef, SignedReceipt, UploadBlock
from edge_agent.reconnect import Backoff
from tests.fakes import agent_bundles
from tests.links import relay as links
from tests.links.relay import Relay
from tests.links.site import AgentThread, Cloud, all_arrived_once, wait

pytestmark = [
    pytest.mark.slow,
    pytest.mark.mosquitto,
    # paho drops the socket of a handshake that failed without closing it; it is closed when it is freed.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    made = Cloud(tmp_path / "cloud")
    yield made
    made.close()


@pytest.mark.parametrize("shape", [links.GPRS, links.SATELLITE], ids=["2g", "satellite"])
def test_over_a_slow_and_far_link_a_bundle_comes_and_everything_is_told_once(
    cloud: Cloud, tmp_path: Path, shape: links.Shape
) -> None:
    link = Relay(("127.0.0.1", cloud.broker.port), shape)
    agent = AgentThread(cloud, tmp_path / "agent", link.port)
    cloud.offer(agent_bundles.make(training=None))
    agent.start()
    try:
        wait(lambda: cloud.outcomes() == ["activated"], agent.ledger)
        agent.feed(8)
        data = bytes(limits.BLOCK_BYTES)
        block = UploadBlock(blob=BlobRef("a" * 64, len(data)), index=0, count=1, data=data)
        before = link.carried[0]
        agent.agent._state.report(block)
        made = all_arrived_once(cloud, agent, samples=400, outcomes=["activated"])
        assert made == 1 + 40 + 1
        # A block takes longer than the patience with an answer, and still nothing was sent twice.
        assert cloud.gateway.counters.accepted()["report"] == made
        assert link.carried[0] - before < 1.6 * limits.BLOCK_BYTES
        assert link.connections == 1
    finally:
        agent.stop()
        link.close()


def test_a_receipt_overtakes_what_matters_less_on_a_slow_link(cloud: Cloud, tmp_path: Path) -> None:
    link = Relay(("127.0.0.1", cloud.broker.port), links.GPRS)
    agent = AgentThread(cloud, tmp_path / "agent", link.port)
    agent.start()
    try:
        wait(lambda: agent.agent._session.connected)
        for index in range(2):
            data = bytes(limits.BLOCK_BYTES)
            blob = BlobRef("a" * 64, 2 * limits.BLOCK_BYTES)
            agent.agent._state.report(UploadBlock(blob=blob, index=index, count=2, data=data))
        wait(agent.agent._session.unconfirmed)
        agent.agent._state.report(SignedReceipt(payload=b"not signed", signature=b""))
        wait(lambda: 3 in cloud.came()[0])
        assert 2 not in cloud.came()[0]  # the second block is still to come
        wait(lambda: cloud.came()[0] == [1, 2, 3])
        assert sorted(cloud.uploads) == [0, 1]
    finally:
        agent.stop()
        link.close()


def test_over_a_link_that_flaps_everything_arrives_once(cloud: Cloud, tmp_path: Path) -> None:
    """Ten seconds up and ten down, compressed ten times, as are the pauses between connections."""
    link = Relay(("127.0.0.1", cloud.broker.port), links.Shape(delay_s=0.02))
    agent = AgentThread(cloud, tmp_path / "agent", link.port, retry_s=1.0)
    cloud.offer(agent_bundles.make(training=None))
    done = threading.Event()

    def flap() -> None:
        while not done.is_set():
            link.up()
            done.wait(1.0)
            link.down()
            done.wait(1.0)
        link.up()

    flapping = threading.Thread(target=flap)
    flapping.start()
    agent.start(backoff=Backoff(0.4, 12.0))
    try:
        wait(lambda: cloud.outcomes() == ["activated"], agent.ledger)
        for _ in range(10):
            agent.feed(4)
            time.sleep(0.5)  # so that windows close while the link is up and while it is down
        made = all_arrived_once(cloud, agent, samples=2000, outcomes=["activated"])
        assert made == 201
        assert link.connections >= 3
    finally:
        done.set()
        flapping.join()
        agent.stop()
        link.close()


def test_cuts_at_any_byte_lose_nothing_and_count_nothing_twice(cloud: Cloud, tmp_path: Path) -> None:
    link = Relay(("127.0.0.1", cloud.broker.port), links.Shape(40_000.0, 0.01))
    agent = AgentThread(cloud, tmp_path / "agent", link.port, retry_s=1.0)
    dice = random.Random(3)
    cloud.offer(agent_bundles.make(training=None))
    agent.start(backoff=Backoff(0.2, 1.0))
    try:
        wait(lambda: cloud.outcomes() == ["activated"], agent.ledger)
        agent.feed(60)
        for _ in range(15):
            carried = sum(link.carried)
            enough = dice.randint(3_000, 25_000)
            wait(lambda: sum(link.carried) > carried + enough or agent.ledger()[1:] == (0, 3000))  # noqa: B023
            link.cut()
        made = all_arrived_once(cloud, agent, samples=3000, outcomes=["activated"])
        assert made == 301
        assert link.connections >= 3
    finally:
        agent.stop()
        link.close()


def test_a_link_that_carries_nothing_any_more_is_left_and_its_late_bytes_do_no_harm(
    cloud: Cloud, tmp_path: Path
) -> None:
    link = Relay(("127.0.0.1", cloud.broker.port))
    agent = AgentThread(cloud, tmp_path / "agent", link.port, keepalive_s=1, retry_s=1.0)
    cloud.offer(agent_bundles.make(training=None))
    agent.start(backoff=Backoff(0.2, 1.0))
    try:
        wait(lambda: cloud.outcomes() == ["activated"], agent.ledger)
        agent.feed(2)
        wait(lambda: cloud.windows()[1] == 100)
        link.stall()
        agent.feed(8)
        wait(lambda: not agent.agent._session.connected)  # by the keepalive: no end of the connection came
        wait(lambda: agent.ledger()[2] == 500)
        link.flow()
        assert all_arrived_once(cloud, agent, samples=500, outcomes=["activated"]) == 51
        wait(lambda: cloud.site.fleet.get("meter-1").connected)  # the will of the old connection came late, or did not
    finally:
        agent.stop()
        link.close()


def test_after_three_days_without_a_link_all_that_was_counted_arrives_once(cloud: Cloud, tmp_path: Path) -> None:
    """A window every two minutes for three days, made in seconds; the device's clock says three days."""
    link = Relay(("127.0.0.1", cloud.broker.port))
    agent = AgentThread(cloud, tmp_path / "agent", link.port, window_samples=10)
    cloud.offer(agent_bundles.make(training=None))
    agent.start(backoff=Backoff(0.2, 1.0))
    try:
        wait(lambda: cloud.outcomes() == ["activated"], agent.ledger)
        link.down()
        wait(lambda: not agent.agent._session.connected)
        agent.feed(108, samples=200)
        began = time.time()
        agent.agent._monitor._clock = lambda: began + 2400.0 * agent.agent._state.pending_count() / 20
        agent.agent._state._began -= 3 * 86400.0  # it has run for three days more
        wait(lambda: agent.ledger()[2] == 21_600, agent.ledger)
        wait(lambda: agent.ledger()[1] >= 2160, agent.ledger)
        assert agent.agent._state.dropped.samples == 0
        link.up()
        assert all_arrived_once(cloud, agent, samples=21_600, outcomes=["activated"]) == 2161
    finally:
        agent.stop()
        link.close()
