"""The session over a real Mosquitto: several threads speak at once, and the network thread is brought back."""

import ssl
import threading
from collections.abc import Iterator

import pytest

from contract import codec, messages, topics
from edge_agent.session import Connected, Message, Session
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
    session.start()
    assert isinstance(session.inbox.get(timeout=10), Connected)
    return session


def test_threads_that_speak_at_once_do_not_break_the_connection(broker: BrokerProcess) -> None:
    listener = Client(broker, "coordinator")
    listener.subscribe(topics.up("meter-1", "report"))
    session = _session(broker, "meter-1")
    blob = messages.BlobRef("a" * 64, 1)

    def speak(thread: int) -> None:
        for number in range(100):
            body = messages.UploadBlock(blob=blob, index=number, count=100, data=bytes([thread]) * 20_000)
            assert session.send(messages.Report(outbox="o", seq=1000 * thread + number, body=body))

    threads = [threading.Thread(target=speak, args=(number,)) for number in range(4)]
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
        assert eventually(lambda: session.inbox.qsize() == 200, 30)
        assert all(isinstance(event, Message) for event in session.inbox.queue)
    finally:
        session.close()
        listener.stop()


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
