"""The session over a real Mosquitto: several threads speak at once, and the network thread is brought back."""

import ssl
import threading
from collections.abc import Iterator

import pytest
from paho.mqtt.client import MQTTMessage

from contract import codec, messages, topics
from edge_agent.session import Connected, Event, Message, Session
from tests.fakes.broker_process import BrokerProcess, Client, eventually

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    running = BrokerProcess(tmp_path_factory.mktemp("broker"), "mosquitto")
    yield running
    running.stop()


def _session(broker: BrokerProcess, name: str) -> Session:
    tls: ssl.SSLContext = broker.tls(name)
    session = Session(name, host="127.0.0.1", port=broker.port, tls=tls, boot="b")
    subscribed = threading.Event()
    session._client.on_subscribe = lambda *_: subscribed.set()
    session.start()
    assert isinstance(session.inbox.get(timeout=10), Connected)
    assert subscribed.wait(10)
    return session


def test_threads_that_speak_at_once_do_not_break_the_connection(broker: BrokerProcess) -> None:
    listener = Client(broker, "coordinator")
    listener.subscribe(topics.up("meter-1", "report"))
    session = _session(broker, "meter-1")
    blob = messages.BlobRef("a" * 64, 1)

    def speak(thread: int) -> None:
        for number in range(100):
            body = messages.UploadBlock(blob=blob, index=number, count=100, data=bytes([thread]) * 20_000)
            report = messages.Report(outbox="o", seq=1000 * thread + number, body=body)
            assert eventually(
                lambda report=report: session.send(report)
            )  # it refuses while too much waits for the broker

    events: list[Event] = []

    def listen() -> None:
        while len(events) < 200:
            events.append(session.inbox.get(timeout=30))

    threads = [threading.Thread(target=speak, args=(number,)) for number in range(4)]
    threads.append(threading.Thread(target=listen))
    for thread in threads:
        thread.start()
    for _ in range(200):
        listener._client.publish(topics.down("meter-1", "ack"), bytes(20_000), 1)
    for thread in threads:
        thread.join()
    try:
        assert eventually(lambda: len(listener.messages) >= 400, 30)
        seen = {codec.decode(payload, messages.Report).seq for payload in listener.payloads()}
        assert seen == {1000 * thread + number for thread in range(4) for number in range(100)}
        assert all(isinstance(event, Message) for event in events)
    finally:
        session.close()
        listener.stop()


def test_a_full_inbox_loses_nothing_and_a_message_that_is_too_large_does_not_enter_it(broker: BrokerProcess) -> None:
    talker = Client(broker, "coordinator")
    session = _session(broker, "meter-3")
    topic = topics.down("meter-3", "ack")
    try:
        for number in range(300):
            talker._client.publish(topic, b"%d" % number, 1)
        assert eventually(lambda: session.inbox.qsize() == 64)
        assert not eventually(lambda: session.inbox.qsize() > 64, 0.5)
        events = [session.inbox.get(timeout=10) for _ in range(300)]
        assert [event.payload for event in events if isinstance(event, Message)] == [b"%d" % n for n in range(300)]
        session._on_message(session._client, None, _message(topic.encode(), bytes(600_000)))
        session._on_message(session._client, None, _message(b"\xff\xfe", b""))
        assert session.inbox.empty()
        for number in range(300):
            talker._client.publish(topic, b"%d" % number, 1)
        assert eventually(session.inbox.full)
    finally:
        session.close()  # ends though nobody reads
        talker.stop()


def _message(topic: bytes, payload: bytes) -> MQTTMessage:
    message = MQTTMessage(1, topic)
    message.payload = payload
    return message


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # paho drops its own wake-up sockets then
def test_a_network_thread_that_dies_is_started_again(broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    deaths: list[object] = []
    monkeypatch.setattr(threading, "excepthook", deaths.append)
    session = _session(broker, "meter-2")
    with monkeypatch.context() as broken:
        broken.setattr(session._client, "_loop", None)  # the next turn of the loop raises
        assert eventually(lambda: deaths and session._client._thread is None)
    try:
        session.revive()
        assert eventually(lambda: session.connected and session.send(messages.MetadataRequest(name="1.root.json")))
    finally:
        session.close()
