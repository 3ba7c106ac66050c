"""The session over both real brokers and both protocol versions: it loses nothing, sees everything, comes back."""

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import MQTTMessage

from contract import codec, messages, topics
from edge_agent.reconnect import Backoff
from edge_agent.session import Connected, Disconnected, Event, Message, Session
from tests.fakes.broker_process import BrokerProcess, Client, eventually

pytestmark = pytest.mark.slow

QUICK = Backoff(first_s=0.2, longest_s=0.5)
KINDS = ["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)]


@pytest.fixture(scope="module", params=KINDS)
def broker(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[BrokerProcess]:
    running = BrokerProcess(tmp_path_factory.mktemp("broker"), request.param)
    running.kind = request.param  # type: ignore[attr-defined]
    yield running
    running.stop()


@pytest.fixture(params=["auto", "3.1.1"])
def protocol(request: pytest.FixtureRequest) -> Any:
    return request.param


Open = Callable[..., Session]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return "meter-" + "".join(f"{ord(sign) % 16:x}" for sign in request.node.name[-40:])


@pytest.fixture
def opened(broker: BrokerProcess, name: str) -> Iterator[Open]:
    made: list[Session] = []

    def make(**options: Any) -> Session:
        settings = {"boot": "b", "backoff": QUICK, "tls": lambda: broker.tls(name), "port": broker.port, **options}
        session = Session(name, host="127.0.0.1", **settings)
        made.append(session)
        session.start()
        return session

    yield make
    for session in made:
        session.close()
        assert session._thread is not None
        session._thread.join(10)
        assert not session._thread.is_alive()


@pytest.fixture
def coordinator(broker: BrokerProcess) -> Iterator[Client]:
    client = Client(broker, "coordinator")
    client.subscribe(topics.all_up())
    yield client
    client.stop()


def event(session: Session, kind: type[Event], timeout: float = 30.0) -> Any:
    """The next event of a kind; others are passed over."""
    for _ in range(100):
        found = session.inbox.get(timeout=timeout)
        if isinstance(found, kind):
            return found
    raise AssertionError


def settle(session: Session, coordinator: Client, name: str) -> None:
    """Wait until the broker has the subscription of a new connection."""
    event(session, Connected)
    for number in range(100):
        coordinator.publish(topics.down(name, "probe"), b"%d" % number)
        if eventually(lambda: not session.inbox.empty(), 0.2):
            break
    last = b"%d" % number
    while event(session, Message).payload != last:
        pass


def report(seq: int, size: int = 10) -> messages.Report:
    body = messages.UploadBlock(blob=messages.BlobRef("a" * 64, 1), index=seq, count=1, data=bytes(size))
    return messages.Report(outbox="outbox-of-this-device", seq=seq, body=body)


def seqs(client: Client) -> list[int]:
    found = [message for message in client.messages if message.topic.endswith("/report")]
    return [codec.decode(message.payload, messages.Report).seq for message in found]


def test_threads_that_speak_at_once_do_not_break_the_connection(
    opened: Open, protocol: Any, coordinator: Client, name: str
) -> None:
    session = opened(protocol=protocol)
    settle(session, coordinator, name)

    def speak(thread: int) -> None:
        for number in range(50):
            # It refuses while too much waits for the broker.
            assert eventually(lambda number=number: session.send(report(1000 * thread + number, 20_000)), 60)

    heard: list[Event] = []

    def listen() -> None:
        while len(heard) < 100:
            heard.append(session.inbox.get(timeout=30))

    threads = [threading.Thread(target=speak, args=(number,)) for number in range(4)]
    threads.append(threading.Thread(target=listen))
    for thread in threads:
        thread.start()
    for _ in range(100):
        coordinator._client.publish(topics.down(name, "ack"), bytes(20_000), 1)
    for thread in threads:
        thread.join()
    assert eventually(lambda: len(seqs(coordinator)) >= 200, 30)
    assert sorted(seqs(coordinator)) == [1000 * thread + number for thread in range(4) for number in range(50)]
    assert all(isinstance(one, Message) for one in heard)
    assert eventually(lambda: session.unconfirmed() == [])


def test_a_full_inbox_loses_nothing_and_a_message_that_is_too_large_does_not_enter_it(
    opened: Open, coordinator: Client, name: str
) -> None:
    session = opened()
    settle(session, coordinator, name)
    topic = topics.down(name, "ack")
    for number in range(300):
        coordinator._client.publish(topic, b"%d" % number, 1)
    assert eventually(lambda: session.inbox.qsize() == 64)
    assert not eventually(lambda: session.inbox.qsize() > 64, 0.5)
    found = [session.inbox.get(timeout=10) for _ in range(300)]
    assert [one.payload for one in found if isinstance(one, Message)] == [b"%d" % number for number in range(300)]
    for bad in (_message(topic.encode(), bytes(600_000)), _message(b"\xff\xfe", b"")):
        session._on_message(bad)
    assert session.inbox.empty()
    for number in range(300):
        coordinator._client.publish(topic, b"%d" % number, 1)
    assert eventually(session.inbox.full)  # and it ends though nobody reads


def _message(topic: bytes, payload: bytes) -> MQTTMessage:
    message = MQTTMessage(1, topic)
    message.payload = payload
    return message


def test_mqtt_5_is_spoken_where_the_broker_offers_it_and_3_1_1_elsewhere_and_that_is_remembered(
    opened: Open, broker: BrokerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edge_agent")
    session = opened()
    expected = "5" if broker.kind == "mosquitto" else "3.1.1"  # type: ignore[attr-defined]
    assert event(session, Connected) == Connected(expected)
    assert session.connections == (1 if expected == "5" else 2)
    assert ("does not speak MQTT 5" in caplog.text) == (expected == "3.1.1")
    cut(session)
    assert event(session, Connected) == Connected(expected)
    assert session.connections == (2 if expected == "5" else 3)


def cut(session: Session) -> None:
    """End the connection as the network would."""
    connection = session._connection
    assert connection is not None
    open_socket = connection._client.socket()
    assert open_socket is not None
    with suppress(OSError):  # it has ended by itself just now
        open_socket.shutdown(2)  # type: ignore[attr-defined]


def test_a_broker_without_the_demanded_protocol_is_named(
    opened: Open, broker: BrokerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    if broker.kind == "mosquitto":  # type: ignore[attr-defined]
        assert event(opened(protocol="5"), Connected) == Connected("5")
    else:
        assert "Unsupported protocol version" in event(opened(protocol="5"), Disconnected).reason


@pytest.mark.mosquitto
def test_mqtt_5_adds_an_expiry_to_what_gets_stale_and_a_trace_to_reports(
    opened: Open, broker: BrokerProcess, name: str
) -> None:
    if broker.kind != "mosquitto":  # type: ignore[attr-defined]
        pytest.skip("the embedded broker speaks 3.1.1 only")
    from paho.mqtt.client import Client as Paho
    from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

    heard: queue.Queue[Any] = queue.Queue()
    listener = Paho(CallbackAPIVersion.VERSION2, client_id="coordinator", protocol=MQTTProtocolVersion.MQTTv5)
    listener.tls_set_context(broker.tls("coordinator"))
    listener.on_connect = lambda client, *_: client.subscribe(topics.all_up(), 1)
    listener.on_subscribe = lambda *_: heard.put("subscribed")
    listener.on_message = lambda _client, _data, message: heard.put(message)
    listener.connect("127.0.0.1", broker.port)
    listener.loop_start()
    try:
        assert heard.get(timeout=10) == "subscribed"
        session = opened()
        event(session, Connected)
        assert session.send(hello(session, 7))
        assert session.send(report(41))
        assert session.send(messages.MetadataRequest(name="1.root.json"))
        first, second, third = (heard.get(timeout=10).properties for _ in range(3))
        assert 110 <= first.MessageExpiryInterval <= 120
        assert first.UserProperty == [("trace", "b-7")]
        assert not hasattr(second, "MessageExpiryInterval")
        assert second.UserProperty == [("trace", "outbox-o-41")]
        assert 50 <= third.MessageExpiryInterval <= 60
    finally:
        listener.disconnect()
        listener.loop_stop()


def hello(session: Session, seq: int, connection: int | None = None) -> messages.Hello:
    number = session.connections if connection is None else connection
    return messages.Hello(
        outbox="o", starts=1, boot="b", connection=number, seq=seq, agent_version="1", runtime_version="1",
        hardware_class="x", bundles=[], samples=0, inferences=0, sent_at=0.0,
    )  # fmt: skip


def test_each_connection_has_a_will_of_its_own_and_a_hello_of_an_older_one_is_not_sent(
    opened: Open, protocol: Any, coordinator: Client
) -> None:
    session = opened(protocol=protocol)
    event(session, Connected)
    first = session.connections
    assert session.send(hello(session, 1))
    assert eventually(lambda: coordinator.messages)
    assert not session.send(hello(session, 2, connection=first - 1))
    cut(session)
    event(session, Connected)
    second = session.connections
    assert second > first
    assert not session.send(hello(session, 3, connection=first))
    assert session.send(hello(session, 4))
    session.close()

    def presence() -> list[tuple[str, int]]:
        kinds = {"hello": messages.Hello, "gone": messages.Gone}
        found = [(message.topic.rsplit("/", 1)[1], message.payload) for message in coordinator.messages]
        return [(channel, codec.decode(payload, kinds[channel]).connection) for channel, payload in found]

    expected = [("gone", first), ("gone", second), ("hello", first), ("hello", second)]
    assert eventually(lambda: sorted(presence()) == expected), presence()  # a will comes when the broker notices
    assert presence().index(("hello", second)) < presence().index(("gone", second))


def test_the_desired_state_comes_again_with_each_connection(
    opened: Open, protocol: Any, coordinator: Client, name: str
) -> None:
    topic = topics.down(name, "desired")
    assert coordinator.publish(topic, b"one", retain=True)
    session = opened(protocol=protocol)
    assert event(session, Message) == Message(topic, b"one")  # and now somebody forgets it: it must come again
    cut(session)
    event(session, Connected)
    assert event(session, Message) == Message(topic, b"one")
    assert coordinator.publish(topic, b"two", retain=True)
    while (message := event(session, Message)) == Message(topic, b"one"):
        pass  # what was not confirmed before the cut comes twice
    assert message == Message(topic, b"two")
    coordinator.publish(topic, b"", retain=True)


def test_what_was_sent_to_a_device_that_was_away_is_kept_for_it(
    opened: Open, protocol: Any, coordinator: Client, name: str
) -> None:
    session = opened(protocol=protocol, backoff=Backoff(first_s=60.0, longest_s=60.0))
    settle(session, coordinator, name)
    cut(session)
    event(session, Disconnected)
    topic = topics.down(name, "round")
    assert coordinator.publish(topic, b"work")
    session.close()
    again = opened(protocol=protocol)
    assert event(again, Message) == Message(topic, b"work")


def test_a_report_on_its_way_is_known_until_the_broker_has_it_and_few_bytes_are(
    opened: Open, coordinator: Client
) -> None:
    session = opened()
    assert not session.send(report(1))
    event(session, Connected)
    accepted = [seq for seq in range(1, 20) if session.send(report(seq, 100_000))]
    assert 1 in accepted
    assert set(session.unconfirmed()) <= set(accepted)
    assert eventually(lambda: session.unconfirmed() == [])
    assert eventually(lambda: seqs(coordinator) == accepted)


def test_a_callback_that_raises_is_seen_and_ends_neither_the_thread_nor_the_connection(
    opened: Open, coordinator: Client, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    session = opened()
    settle(session, coordinator, name)
    put = session._put

    def break_on_second(one: Event) -> None:
        if isinstance(one, Message) and one.payload == b"2":
            raise KeyError("a mistake of ours")
        put(one)

    monkeypatch.setattr(session, "_put", break_on_second)
    for number in range(1, 5):
        coordinator.publish(topics.down(name, "ack"), b"%d" % number)
    assert [event(session, Message).payload for _ in range(3)] == [b"1", b"3", b"4"]
    assert "a mistake of ours" in caplog.text
    assert session.send(report(1))
    assert eventually(lambda: session.unconfirmed() == [])


def test_a_callback_that_raises_while_connecting_is_seen_and_the_next_connection_works(
    opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = iter([True])
    put = Session._put

    def fail_once(session: Session, one: Event) -> None:
        if isinstance(one, Connected) and next(broken, False):
            raise ZeroDivisionError("in on_connect")
        put(session, one)

    monkeypatch.setattr(Session, "_put", fail_once)
    session = opened()
    assert event(session, Connected)
    assert "in on_connect" in caplog.text
    assert session.send(report(1))


def test_a_network_thread_that_dies_is_started_again(
    opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    session = opened()
    event(session, Connected)
    session.revive()  # it lives: nothing happens
    connection = session._connection
    assert connection is not None
    assert session._thread is not None

    def die(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(connection._client, "_loop", die)
    assert eventually(lambda: session._thread is not None and not session._thread.is_alive())
    assert not session.connected
    session.revive()
    assert "had died" in caplog.text
    assert eventually(lambda: session.connected and session.send(messages.MetadataRequest(name="1.root.json")), 30)


def test_a_link_that_flaps_leaves_no_descriptors_behind(opened: Open) -> None:
    session = opened()
    event(session, Connected)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(15):
        cut(session)
        event(session, Connected)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_a_certificate_that_cannot_be_read_is_said_and_the_next_connection_uses_a_good_one(
    opened: Open, broker: BrokerProcess, name: str
) -> None:
    from edge_agent.errors import ConfigError

    contexts = iter([ConfigError("device.crt: not usable"), broker.tls(name)])

    def tls() -> Any:
        made = next(contexts, broker.tls(name))
        if isinstance(made, Exception):
            raise made
        return made

    session = opened(tls=tls)
    assert event(session, Disconnected).reason == "device.crt: not usable"
    assert event(session, Connected)


def test_an_agent_in_a_hurry_does_not_wait_for_its_pause(opened: Open, broker: BrokerProcess) -> None:
    session = opened(backoff=Backoff(first_s=3600.0, longest_s=3600.0))
    event(session, Connected)
    cut(session)
    event(session, Disconnected)
    session.hurry()
    assert event(session, Connected)


@pytest.mark.mosquitto
@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_the_session_outlives_a_restart_of_the_broker(tmp_path: Path, version: Any) -> None:
    """Mosquitto 2.0.11 forgets one of MQTT 5 that was opened with clean_start and an expiry."""
    broker = BrokerProcess(tmp_path / "broker", "mosquitto")

    def session() -> Session:
        pause = Backoff(60.0, 60.0)
        made = Session("meter-1", host="127.0.0.1", port=broker.port, tls=lambda: broker.tls("meter-1"), boot="b",
                       protocol=version, backoff=pause)  # fmt: skip
        made.start()
        return made

    coordinator = Client(broker, "coordinator")
    first = session()
    try:
        settle(first, coordinator, "meter-1")
        cut(first)
        event(first, Disconnected)
        assert coordinator.publish(topics.down("meter-1", "round"), b"work")
        broker.stop()
        broker.start()
        second = session()
        assert event(second, Message) == Message(topics.down("meter-1", "round"), b"work")
        second.close()
    finally:
        first.close()
        coordinator.stop()
        broker.stop()
