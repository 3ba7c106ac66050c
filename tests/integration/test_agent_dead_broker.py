"""A broker that accepts and never answers: noticed within a bounded time, said, tried again; the rest goes on."""

import logging
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contract import messages
from coordinator import pki
from edge_agent.identity import server_tls
from edge_agent.reconnect import Backoff
from edge_agent.session import Connected, Disconnected, Session
from edge_agent.status import read
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_coordinator import AgentProcess, Coordinator
from tests.fakes.broker_process import BrokerProcess, eventually, free_port
from tests.fakes.dead_broker import DeadBroker, Silence

pytestmark = [
    pytest.mark.slow,
    # paho drops the socket of a handshake that failed without closing it; it is closed when it is freed.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Lonely:
    """A session that talks to a dead broker."""

    def __init__(self, state: Path, silence: Silence) -> None:
        pki.create(state)
        self.broker = DeadBroker(state / "pki", free_port(), silence)
        self.session = Session(
            "meter-1",
            host="127.0.0.1",
            port=self.broker._listener.getsockname()[1],
            tls=lambda: server_tls(state / "pki" / "ca.crt"),
            boot="b",
            keepalive_s=1,
            answer_s=1.0,
            backoff=Backoff(0.1, 0.2),
        )
        self.session.start()

    def reason(self) -> str:
        """Why the session came down last."""
        while True:
            event = self.session.inbox.get(timeout=30)
            if isinstance(event, Disconnected):
                return event.reason


@pytest.fixture
def lonely(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lonely]:
    made = Lonely(tmp_path, request.param)
    yield made
    made.session.close()
    made.broker.stop()


@pytest.mark.parametrize(
    ("lonely", "reason"),
    [
        ("tls", "timed out"),
        ("connack", "no answer to CONNECT in 1 s|Keep alive timeout"),
        ("everything", "Keep alive timeout"),
        ("denied", "not authorised: its certificate may be revoked or not enrolled; run: edge-agent doctor"),
    ],
    indirect=["lonely"],
)
def test_a_broker_that_does_not_answer_is_noticed_said_and_tried_again(
    lonely: Lonely, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    import re

    assert re.search(reason, lonely.reason())
    assert eventually(lambda: lonely.broker.accepted >= 3, 60)  # and again, and again
    assert re.search(reason, caplog.text)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) <= 2  # what goes on in the same way is not shouted
    assert not lonely.session.connected or lonely.broker.silence == "everything"


@pytest.mark.parametrize("lonely", ["puback"], indirect=True)
def test_a_broker_that_answers_pings_and_confirms_nothing_is_left(lonely: Lonely) -> None:
    assert isinstance(lonely.session.inbox.get(timeout=30), Connected)
    body = messages.SignedReceipt(payload=b"p", signature=b"s")
    assert lonely.session.send(messages.Report(outbox="o", seq=1, body=body))
    assert lonely.session.unconfirmed() == [1]
    assert "the broker has confirmed nothing for" in lonely.reason()
    assert eventually(lambda: lonely.session.connected, 30)
    assert lonely.session.inbox.get(timeout=5) == Connected("5")
    with pytest.raises(queue.Empty):  # with nothing to confirm it stays
        lonely.session.inbox.get(timeout=5)
    assert lonely.session.connected
    assert lonely.session.unconfirmed() == []


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    running = BrokerProcess(tmp_path / "broker", "mosquitto")
    yield running
    running.stop()


@pytest.mark.mosquitto
@pytest.mark.parametrize("silence", ["tls", "connack"])
def test_inference_goes_on_while_the_broker_is_dead_and_all_is_told_when_it_lives_again(
    broker: BrokerProcess, tmp_path: Path, silence: Any
) -> None:
    coordinator = Coordinator(broker)
    agent = AgentProcess(coordinator, tmp_path / "agent", "meter-1")
    agent.start()
    try:
        ref = coordinator.publish(agent_bundles.make())
        coordinator.desire("meter-1", ref)
        agent.wait(lambda: coordinator.receipts(agent.certificate))
        coordinator.stop()
        broker.process.kill()
        broker.process.wait()
        dead = DeadBroker(broker.state / "pki", broker.port, silence)
        agent.wait(lambda: dead.accepted, 60)
        for index in range(4):
            agent.feed(f"{index:03d}", *agent_models.samples(50, seed=index))
        agent.wait(lambda: read(agent.folder.root).inferences == 200)
        agent.wait(lambda: read(agent.folder.root).pending_reports >= 4)  # perhaps the receipt's Ack was lost, too
        assert not read(agent.folder.root).connected
        dead.stop()
        broker.start()
        again = Coordinator(broker)
        agent.wait(lambda: again.samples() == 200, 120)
        again.stop()
    finally:
        assert agent.stop() == 0, agent.log.read_text()
    assert "Traceback" not in agent.log.read_text()
    told = [event["event"] for event in agent.events()]
    assert "disconnected" in told


def test_an_agent_that_is_stopped_while_it_waits_for_a_dead_broker_ends_soon(tmp_path: Path) -> None:
    pki.create(tmp_path / "site")
    dead = DeadBroker(tmp_path / "site" / "pki", free_port(), "tls")
    session = Session(
        "meter-1",
        host="127.0.0.1",
        port=dead._listener.getsockname()[1],
        tls=lambda: server_tls(tmp_path / "site" / "pki" / "ca.crt"),
        boot="b",
    )
    session.start()
    assert eventually(lambda: dead.accepted)
    session.close()  # waits a few seconds at most, though the handshake could take twenty
    dead.stop()
    assert not session.connected
    assert session._thread is not None
    session._thread.join(30)
    assert not session._thread.is_alive()
