"""The gateway over real brokers: reports count once, desired states wait for devices, restarts lose nothing."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contract import codec, limits, topics
from contract.messages import Ack, BlobRef, BlockRequest, Desired, Instruction, Report, RoundReply
from coordinator.deltas.service import Deltas
from coordinator.gateway.service import Gateway
from coordinator.loops import Loop
from tests.fakes.broker_process import BrokerProcess, Client, eventually
from tests.fakes.fleet_site import Instructions, NoCommands, Site


class Whole:
    """A site with a gateway on a broker of its own."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.broker = BrokerProcess(folder, kind)
        self.site = Site(folder)
        self.instructions = Instructions()
        self.seen: list[tuple[str, int]] = []
        self.start()

    def start(self) -> None:
        def handle(_connection: Any, device: str, body: RoundReply, _now: float) -> None:
            self.seen.append((device, body.examples))

        self.gateway = Gateway(
            self.broker_config(),
            self.broker.state,
            storage=self.site.storage,
            fleet=self.site.fleet,
            signing=self.site.signing,
            handlers={RoundReply: handle},
            instructions=self.instructions,
            commands=NoCommands(),
            deltas=Deltas(self.site.storage, self.site.signing),
        )
        self.gateway.start()
        self.loop = Loop("gateway", self.gateway.tick, every_s=0.02)
        self.loop.start()
        assert eventually(lambda: self.gateway.connected)

    def broker_config(self) -> Any:
        from coordinator import config

        return config.load(self.broker.state)

    def stop(self) -> None:
        self.loop.stop()
        self.gateway.stop()

    def device(self, name: str) -> Client:
        if name not in self.site.keys:
            self.site.enrol(name)
        client = Client(self.broker, name, clean=False)
        client.subscribe(topics.all_down(name))
        return client

    def desire(self, name: str) -> Desired:
        with self.site.engine.begin() as connection:
            return self.site.fleet.set_desired(connection, name, "digits", "r", None)


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def whole(request: Any, tmp_path: Path) -> Iterator[Whole]:
    made = Whole(tmp_path, request.param)
    yield made
    made.stop()
    made.site.close()
    made.broker.stop()


Devices = Callable[[str], Client]


@pytest.fixture
def device(whole: Whole) -> Iterator[Devices]:
    clients: list[Client] = []

    def make(name: str) -> Client:
        clients.append(whole.device(name))
        return clients[-1]

    yield make
    for client in clients:
        client.stop()


def report(seq: int) -> bytes:
    body = RoundReply(instruction="i", error="", examples=seq, metrics={}, weights=None, counts=None)
    return codec.encode(Report(outbox="o", seq=seq, body=body))


def desired(client: Client) -> list[Desired]:
    found = [message for message in client.messages if message.topic.endswith("/desired")]
    return [codec.decode_json(message.payload, Desired) for message in found]


def test_reports_are_committed_and_acknowledged_and_what_came_while_we_were_away_is_not_lost(
    whole: Whole, device: Devices
) -> None:
    client = device("meter-1")
    client.publish(topics.up("meter-1", "report"), report(1))
    assert eventually(lambda: whole.seen == [("meter-1", 1)])
    whole.stop()
    client.publish(topics.up("meter-1", "report"), report(1))
    client.publish(topics.up("meter-1", "report"), report(2))
    whole.start()
    assert eventually(lambda: whole.seen == [("meter-1", 1), ("meter-1", 2)])
    assert eventually(lambda: len(client.messages) == 3)
    assert [codec.decode(payload, Ack).seqs for payload in client.payloads()] == [[1], [1], [2]]


def test_a_desired_state_waits_for_a_device_and_survives_a_killed_broker(whole: Whole, device: Devices) -> None:
    whole.site.enrol("meter-2")
    state = whole.desire("meter-2")
    client = device("meter-2")
    assert eventually(lambda: desired(client) == [state])
    client.stop()
    whole.broker.process.kill()
    whole.broker.process.wait()
    assert eventually(lambda: not whole.gateway.connected)
    newer = whole.desire("meter-2")
    whole.broker.start()
    assert eventually(lambda: whole.gateway.connected, 20)
    again = device("meter-2")
    assert eventually(lambda: desired(again)[-1:] == [newer])


def test_blocks_come_from_the_blob_store_to_who_may_have_them(whole: Whole, device: Devices) -> None:
    data = bytes(range(256)) * 2048  # four blocks
    ref = whole.site.storage.blobs.put(data)
    whole.instructions.weights = {("meter-3", ref.sha256)}
    allowed, other = device("meter-3"), device("meter-4")
    for client, name in ((allowed, "meter-3"), (other, "meter-4")):
        client.subscribe(f"{topics.PREFIX}/blob/{'0' * 64 if name == 'meter-4' else ref.sha256}/+")
        request = BlockRequest(sha256=ref.sha256, blocks=[0, 1, 2, 3])
        client.publish(topics.up(name, "pull"), codec.encode(request))
    assert eventually(lambda: len(allowed.messages) == 4)
    assert b"".join(allowed.payloads()) == data
    assert eventually(lambda: whole.gateway.counters.dropped() == {"not allowed": 1})
    assert len(data) == 4 * limits.BLOCK_BYTES
    assert other.messages == []


def test_a_message_that_breaks_our_code_does_not_end_the_session(
    whole: Whole, device: Devices, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = device("meter-5")
    with monkeypatch.context() as patch:
        patch.setattr(whole.site.fleet, "receive", lambda *_, **__: 1 / 0)
        client.publish(topics.up("meter-5", "report"), report(1))
        assert eventually(lambda: "could not be handled" in caplog.text)
    time.sleep(0.1)
    client.publish(topics.up("meter-5", "report"), report(1))
    assert eventually(lambda: whole.seen == [("meter-5", 1)])


def test_a_network_thread_that_died_is_started_again(
    whole: Whole, device: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = device("meter-6")
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with monkeypatch.context() as patch:
        patch.setattr(whole.gateway._client, "_loop", lambda *_: 1 / 0)  # as in paho's issue 894
        thread = whole.gateway._client._thread
        client.publish(topics.up("meter-6", "report"), report(1))
        assert eventually(lambda: thread is not None and not thread.is_alive())
    client.publish(topics.up("meter-6", "report"), report(1))
    assert eventually(lambda: whole.seen == [("meter-6", 1)], 20)


def instruction(id: str, expires_at: float) -> Instruction:  # noqa: A002 its name
    weights = BlobRef("1" * 64, 3)
    return Instruction(
        id=id, run="r", round=1, kind="train", bundle_sha256="0" * 64, weights=weights, expires_at=expires_at
    )


@pytest.mark.mosquitto
def test_an_instruction_that_expired_while_a_device_was_away_is_not_delivered(tmp_path: Path) -> None:
    whole = Whole(tmp_path, "mosquitto")
    try:
        whole.device("meter-7").stop()  # its session stays
        soon, late = time.time() + 2.0, time.time() + 600.0
        whole.instructions.waiting = [("meter-7", instruction("a", soon)), ("meter-7", instruction("b", late))]
        assert eventually(lambda: whole.instructions.carried == ["a", "b"])
        assert eventually(lambda: time.time() > soon + 1.5, 30)
        client = whole.device("meter-7")
        assert eventually(lambda: client.messages)
        assert [codec.decode(payload, Instruction).id for payload in client.payloads()] == ["b"]
        client.stop()
    finally:
        whole.stop()
        whole.site.close()
        whole.broker.stop()


def test_an_external_broker_that_does_not_speak_mqtt_5_is_spoken_to_in_3_1_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = Whole.broker_config
    monkeypatch.setattr(Whole, "broker_config", lambda whole: msgspec.structs.replace(config(whole), broker="external"))
    caplog.set_level(logging.INFO, "coordinator")
    whole = Whole(tmp_path, "embedded")
    try:
        assert "does not speak MQTT 5" in caplog.text
        client = whole.device("meter-8")
        client.publish(topics.up("meter-8", "report"), report(1))
        assert eventually(lambda: whole.seen == [("meter-8", 1)])
        client.stop()
    finally:
        whole.stop()
        whole.site.close()
        whole.broker.stop()


@pytest.mark.mosquitto
def test_the_trace_of_a_message_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from edge_agent.session import Connected, Session

    caplog.set_level(logging.DEBUG, "coordinator.gateway")
    whole = Whole(tmp_path, "mosquitto")
    whole.site.enrol("meter-9")
    session = Session(
        "meter-9", host="127.0.0.1", port=whole.broker.port, tls=lambda: whole.broker.tls("meter-9"), boot="b"
    )
    session.start()
    try:
        assert isinstance(session.inbox.get(timeout=20), Connected)
        body = RoundReply(instruction="i", error="", examples=5, metrics={}, weights=None, counts=None)
        assert session.send(Report(outbox="abcdefghijkl", seq=5, body=body))
        assert eventually(lambda: whole.seen == [("meter-9", 5)])
        assert "trace abcdefgh-5" in caplog.text
    finally:
        session.close()
        whole.stop()
        whole.site.close()
        whole.broker.stop()
