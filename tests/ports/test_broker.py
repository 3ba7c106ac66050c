"""The contract of a broker, held by both kinds: who may connect, who may say and hear what, what is kept."""

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from contract import limits
from coordinator import config, pki
from coordinator.broker import revoked
from tests.fakes.broker_process import BrokerProcess, Client, eventually, is_refused

UP = "fleet/v1/dev/{}/up/{}"
DOWN = "fleet/v1/dev/{}/down/{}"


@pytest.fixture(scope="module", params=["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def broker(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    running = BrokerProcess(tmp_path_factory.mktemp(request.param), request.param)
    yield running
    assert running.stop() == 0
    noise = [
        line for line in running.log.read_text().splitlines() if "Traceback" in line or "exception" in line.lower()
    ]
    assert noise == []


Connect = Callable[..., Client]


@pytest.fixture
def connect(broker: BrokerProcess) -> Iterator[Connect]:
    clients: list[Client] = []

    def make(name: str, **options: Any) -> Client:
        clients.append(Client(broker, name, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.stop()


def _answer(broker: BrokerProcess, context: ssl.SSLContext) -> bytes:
    """What comes back for a CONNECT; nothing where the handshake or the connection fails."""
    raw = socket.create_connection(("127.0.0.1", broker.port), 5)
    try:
        with context.wrap_socket(raw, server_hostname="127.0.0.1") as tls:
            tls.sendall(b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02aa")
            return tls.recv(4)
    except OSError:
        raw.close()
        return b""


def test_a_client_without_a_certificate_is_refused(broker: BrokerProcess) -> None:
    assert _answer(broker, broker.tls(None)) == b""


def test_a_certificate_of_another_authority_is_refused(broker: BrokerProcess, tmp_path: Path) -> None:
    pki.create(tmp_path)
    context = broker.tls(None)
    context.load_cert_chain(tmp_path / "pki" / "coordinator.crt", tmp_path / "pki" / "coordinator.key")
    assert _answer(broker, context) == b""


def test_a_servers_certificate_is_no_clients_certificate(broker: BrokerProcess) -> None:
    context = broker.tls(None)
    context.load_cert_chain(broker.state / "pki" / "api.crt", broker.state / "pki" / "api.key")
    assert _answer(broker, context) == b""


def test_plain_tcp_gets_no_answer(broker: BrokerProcess) -> None:
    with socket.create_connection(("127.0.0.1", broker.port), 5) as raw:
        raw.sendall(b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02aa")
        raw.settimeout(5)
        try:
            answer = raw.recv(64)
        except ConnectionResetError:
            answer = b""
    assert not answer.startswith(b"\x20")  # a CONNACK


def test_another_devices_client_id_gives_nothing(connect: Connect) -> None:
    victim = connect("dev-a", clean=False)
    coordinator = connect("coordinator")
    victim.subscribe(DOWN.format("dev-a", "#"))
    thief = connect("dev-b", client_id="dev-a", clean=False)
    if thief.connected.is_set():  # Mosquitto replaces the client id by the certificate's name
        thief.subscribe(DOWN.format("dev-a", "#"))
    assert coordinator.publish(DOWN.format("dev-a", "round"), b"secret")
    assert eventually(lambda: victim.payloads() == [b"secret"])
    assert not victim.closed.is_set()
    assert thief.payloads() == []


def test_a_clean_connection_in_anothers_name_does_not_delete_the_session(connect: Connect) -> None:
    victim = connect("dev-c", clean=False)
    coordinator = connect("coordinator")
    victim.subscribe(DOWN.format("dev-c", "#"))
    victim.stop()
    connect("dev-b", client_id="dev-c", clean=True)
    assert coordinator.publish(DOWN.format("dev-c", "round"), b"kept")
    again = connect("dev-c", clean=False)
    assert eventually(lambda: again.payloads() == [b"kept"])


def test_a_device_speaks_only_below_its_own_up(connect: Connect) -> None:
    coordinator, device = connect("coordinator"), connect("dev-a")
    coordinator.subscribe("fleet/v1/#")
    for topic in (
        UP.format("dev-b", "hello"),
        DOWN.format("dev-a", "round"),
        "fleet/v1/blob/" + "0" * 64 + "/0",
        "other",
    ):
        device.publish(topic, b"foreign")
    if device.closed.is_set():
        device = connect("dev-a")
    assert device.publish(UP.format("dev-a", "hello"), b"own")
    assert eventually(lambda: b"own" in coordinator.payloads())
    assert coordinator.payloads() == [b"own"]


def test_a_device_hears_only_its_own_down_and_blobs(connect: Connect) -> None:
    coordinator, device = connect("coordinator"), connect("dev-a")
    blob = "fleet/v1/blob/" + "a" * 64
    for topic_filter in (
        DOWN.format("dev-b", "#"),
        UP.format("dev-b", "#"),
        "fleet/v1/dev/+/down/#",
        "fleet/v1/#",
        "#",
        "+/v1/dev/dev-b/down/round",
    ):
        device.subscribe(topic_filter)
    device.subscribe(DOWN.format("dev-a", "#"))
    device.subscribe(f"{blob}/+")
    coordinator.publish(DOWN.format("dev-b", "round"), b"foreign")
    coordinator.publish(DOWN.format("dev-b", "desired"), b"foreign", retain=True)
    assert coordinator.publish(f"{blob}/7", b"block")
    assert coordinator.publish(DOWN.format("dev-a", "round"), b"own")
    assert eventually(lambda: b"own" in device.payloads())
    assert set(device.payloads()) == {b"block", b"own"}
    coordinator.publish(DOWN.format("dev-b", "desired"), b"", retain=True)


def test_retained_state_of_another_device_never_arrives_on_reconnection(connect: Connect) -> None:
    coordinator = connect("coordinator")
    other = connect("dev-b", clean=False)
    other.subscribe(DOWN.format("dev-b", "#"))
    device = connect("dev-a", clean=False)
    device.subscribe(DOWN.format("dev-a", "#"))
    device.stop()
    assert coordinator.publish(DOWN.format("dev-b", "desired"), b"of b", retain=True)
    again = connect("dev-a", clean=False)
    assert coordinator.publish(DOWN.format("dev-a", "round"), b"own")
    assert eventually(lambda: b"own" in again.payloads())
    assert b"of b" not in again.payloads()
    coordinator.publish(DOWN.format("dev-b", "desired"), b"", retain=True)


def test_an_offline_device_gets_its_qos_1_messages_in_order(connect: Connect) -> None:
    device, coordinator = connect("dev-d", clean=False), connect("coordinator")
    device.subscribe(DOWN.format("dev-d", "#"))
    device.stop()
    sent = [b"%d" % index for index in range(100)]
    for payload in sent:
        assert coordinator.publish(DOWN.format("dev-d", "round"), payload)
    again = connect("dev-d", clean=False)
    assert again.present
    assert eventually(lambda: len(again.messages) >= 100)
    assert again.payloads() == sent


def test_messages_that_a_lost_connection_did_not_acknowledge_come_again(
    broker: BrokerProcess, connect: Connect
) -> None:
    device, coordinator = connect("dev-e", clean=False), connect("coordinator")
    device.subscribe(DOWN.format("dev-e", "#"))
    device.stop()
    assert coordinator.publish(DOWN.format("dev-e", "round"), b"once")
    # A client that takes the message off the wire and dies before it acknowledges.
    raw = socket.create_connection(("127.0.0.1", broker.port), 5)
    with broker.tls("dev-e").wrap_socket(raw, server_hostname="127.0.0.1") as tls:
        tls.sendall(b"\x10\x11\x00\x04MQTT\x04\x00\x00\x3c\x00\x05dev-e")
        seen = b""
        while b"once" not in seen:
            seen += tls.recv(1024)
    again = connect("dev-e", clean=False)
    assert eventually(lambda: again.payloads() == [b"once"])
    assert again.messages[0].dup


def test_a_slow_acknowledgement_loses_nothing(broker: BrokerProcess, connect: Connect) -> None:
    coordinator = connect("coordinator")
    raw = socket.create_connection(("127.0.0.1", broker.port), 5)
    with broker.tls("dev-f").wrap_socket(raw, server_hostname="127.0.0.1") as tls:
        tls.sendall(b"\x10\x11\x00\x04MQTT\x04\x00\x00\x3c\x00\x05dev-f")
        topic = DOWN.format("dev-f", "#").encode()
        tls.sendall(bytes([0x82, 5 + len(topic), 0, 1, 0, len(topic)]) + topic + b"\x01")
        time.sleep(0.3)
        assert coordinator.publish(DOWN.format("dev-f", "round"), b"slow")
        time.sleep(5.5)  # amqtt forgets after five seconds
    again = connect("dev-f", clean=False)
    assert eventually(lambda: again.payloads() == [b"slow"])


def test_a_second_connection_takes_over_and_hears_everything(connect: Connect) -> None:
    first, coordinator = connect("dev-g", clean=False), connect("coordinator")
    first.subscribe(DOWN.format("dev-g", "#"))
    second = connect("dev-g", clean=False)
    assert first.closed.wait(5)
    time.sleep(0.3)
    for index in range(3):
        assert coordinator.publish(DOWN.format("dev-g", "round"), b"%d" % index)
    assert eventually(lambda: second.payloads() == [b"0", b"1", b"2"])


def test_retained_state_waits_for_a_new_subscriber_and_can_be_cleared(connect: Connect) -> None:
    coordinator = connect("coordinator")
    assert coordinator.publish(DOWN.format("dev-h", "desired"), b"state", retain=True)
    device = connect("dev-h")
    device.subscribe(DOWN.format("dev-h", "#"))
    assert eventually(lambda: device.payloads() == [b"state"])
    assert device.messages[0].retain
    assert coordinator.publish(DOWN.format("dev-h", "desired"), b"newer", retain=True)
    assert eventually(lambda: device.payloads() == [b"state", b"newer"])
    assert not device.messages[1].retain
    assert coordinator.publish(DOWN.format("dev-h", "desired"), b"", retain=True)
    device.stop()
    later = connect("dev-h")
    later.subscribe(DOWN.format("dev-h", "#"))
    assert coordinator.publish(DOWN.format("dev-h", "round"), b"end")
    assert eventually(lambda: later.payloads() == [b"end"])


def test_the_last_will_speaks_for_a_lost_connection_only(connect: Connect) -> None:
    coordinator = connect("coordinator")
    coordinator.subscribe("fleet/v1/dev/+/up/#")
    lost = connect("dev-i", will=(UP.format("dev-i", "gone"), b"lost"))
    lost.cut()
    assert eventually(lambda: coordinator.payloads() == [b"lost"])
    left = connect("dev-i", will=(UP.format("dev-i", "gone"), b"left"))
    left.stop()
    forged = connect("dev-i", will=(UP.format("dev-b", "gone"), b"forged"))
    forged.cut()
    other = connect("dev-b")
    assert other.publish(UP.format("dev-b", "hello"), b"end")
    assert eventually(lambda: b"end" in coordinator.payloads())
    assert coordinator.payloads() == [b"lost", b"end"]


def test_a_silent_client_is_given_up(broker: BrokerProcess, connect: Connect) -> None:
    coordinator = connect("coordinator")
    coordinator.subscribe("fleet/v1/dev/+/up/#")
    topic = UP.format("dev-j", "gone").encode()
    body = b"\x00\x04MQTT\x04\x0e\x00\x01\x00\x05dev-j\x00" + bytes([len(topic)]) + topic + b"\x00\x04mute"
    raw = socket.create_connection(("127.0.0.1", broker.port), 5)
    with broker.tls("dev-j").wrap_socket(raw, server_hostname="127.0.0.1") as tls:
        tls.sendall(bytes([0x10, len(body)]) + body)
        assert eventually(lambda: b"mute" in coordinator.payloads(), 15)


def test_the_largest_message_passes_and_a_larger_one_is_dropped(connect: Connect) -> None:
    coordinator, device = connect("coordinator"), connect("dev-k")
    coordinator.subscribe("fleet/v1/dev/+/up/#")
    largest = bytes(range(256)) * (limits.MESSAGE_BYTES // 256)
    assert device.publish(UP.format("dev-k", "report"), largest)
    assert eventually(lambda: coordinator.payloads() == [largest])
    device.publish(UP.format("dev-k", "report"), largest + b"x")
    again = connect("dev-k")
    again.publish(UP.format("dev-k", "report"), largest * 8)
    last = connect("dev-k")
    assert last.publish(UP.format("dev-k", "report"), b"end")
    assert eventually(lambda: b"end" in coordinator.payloads())
    assert [len(payload) for payload in coordinator.payloads()] == [len(largest), 3]


def test_forty_large_messages_in_a_burst_all_arrive(connect: Connect) -> None:
    coordinator, device = connect("coordinator"), connect("dev-l", clean=False)
    topic = "fleet/v1/blob/" + "b" * 64
    device.subscribe(f"{topic}/+")
    for index in range(40):
        coordinator._client.publish(f"{topic}/{index}", bytes([index]) * limits.BLOCK_BYTES, 1)
    assert eventually(lambda: len(device.messages) == 40)
    assert [message.payload[0] for message in device.messages] == list(range(40))


def test_garbage_ends_the_connection_and_nothing_else(broker: BrokerProcess, connect: Connect) -> None:
    for garbage in (b"\xff\xff\xff\xff\xff", b"\x30\x05\x00\x09\xff\xfe\xfd", b"\x10\x00", b"\x00\x00"):
        raw = socket.create_connection(("127.0.0.1", broker.port), 5)
        with broker.tls("dev-m").wrap_socket(raw, server_hostname="127.0.0.1") as tls:
            tls.sendall(garbage)
            tls.settimeout(5)
            assert tls.recv(16) == b""
    with_session = connect("dev-m")
    with_session._client._sock.sendall(b"\x32\x07\x00\x09ab\xff\xfe\xfd")  # type: ignore[union-attr]
    assert with_session.closed.wait(5)
    assert connect("dev-m").publish(UP.format("dev-m", "hello"), b"well")


def test_qos_2_from_a_client_is_delivered_once(connect: Connect) -> None:
    coordinator, device = connect("coordinator"), connect("dev-n")
    coordinator.subscribe("fleet/v1/dev/+/up/#")
    assert device.publish(UP.format("dev-n", "hello"), b"exactly", qos=2)
    assert device.publish(UP.format("dev-n", "hello"), b"end")
    assert eventually(lambda: coordinator.payloads() == [b"exactly", b"end"])


def _revoke(broker: BrokerProcess, *names: str) -> None:
    serials = {pki.serial(broker.certificate(name)[0].read_bytes()): datetime.now(UTC) for name in names}
    crl = broker.authority.crl(serials, lasts=timedelta(days=1), now=datetime.now(UTC))
    revoked.publish(broker.state, config.load(broker.state), crl)


def test_a_revoked_certificate_is_cut_off_and_cannot_return_under_any_name(
    broker: BrokerProcess, connect: Connect
) -> None:
    coordinator = connect("coordinator")
    victim, neighbour = connect("dev-r"), connect("dev-s")
    neighbour.subscribe(DOWN.format("dev-s", "#"))
    _revoke(broker, "dev-r")
    if config.load(broker.state).broker == "mosquitto":
        assert coordinator.publish(revoked.CONTROL, revoked.kick_command(["dev-r"]))
    assert eventually(victim.closed.is_set)
    assert is_refused(broker, "dev-r")
    assert is_refused(broker, "dev-r", client_id="dev-s")
    assert is_refused(broker, "dev-r", client_id="somebody")
    assert coordinator.publish(DOWN.format("dev-s", "round"), b"still there")
    assert eventually(lambda: neighbour.payloads() == [b"still there"])
    assert not neighbour.closed.is_set()
    assert connect("dev-t").publish(UP.format("dev-t", "hello"), b"welcome")
    _revoke(broker)
    assert eventually(lambda: not is_refused(broker, "dev-r"), 20)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_revoked_device_that_resumes_its_tls_session_gets_no_further(
    broker: BrokerProcess, version: ssl.TLSVersion
) -> None:
    context = broker.tls("dev-u")
    context.minimum_version = context.maximum_version = version

    def accepted(session: ssl.SSLSession | None) -> ssl.SSLSession | None:
        raw = socket.create_connection(("127.0.0.1", broker.port), 5)
        try:
            with context.wrap_socket(raw, server_hostname="127.0.0.1", session=session) as tls:
                tls.sendall(b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05dev-u")
                return tls.session if tls.recv(4) == b"\x20\x02\x00\x00" else None
        except OSError:
            raw.close()
            return None

    session = accepted(None)
    assert session is not None
    session = accepted(session)
    assert session is not None  # a session is worth something to a device that is not revoked
    _revoke(broker, "dev-u")
    assert eventually(lambda: accepted(None) is None)
    assert accepted(session) is None
    _revoke(broker)
    assert eventually(lambda: accepted(None) is not None)


@pytest.mark.mosquitto
def test_no_device_can_have_another_cut_off(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path, "mosquitto")
    clients = [Client(broker, name) for name in ("dev-a", "dev-b", "coordinator")]
    attacker, victim, coordinator = clients
    try:
        attacker.publish(revoked.CONTROL, revoked.kick_command(["dev-b", "coordinator"]))
        attacker.publish("$CONTROL/dynamic-security/v1", b'{"commands": [{"command": "listClients"}]}')
        coordinator.subscribe(UP.format("dev-b", "#"))
        assert victim.publish(UP.format("dev-b", "hello"), b"here")
        assert eventually(lambda: coordinator.payloads() == [b"here"])
        assert not victim.closed.is_set()
    finally:
        for client in clients:
            client.stop()
        broker.stop()


@pytest.mark.mosquitto
def test_mosquitto_with_an_expired_list_lets_nobody_in_until_it_has_a_new_one(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path, "mosquitto")
    try:
        old = broker.authority.crl({}, lasts=timedelta(days=1), now=datetime.now(UTC) - timedelta(days=2))
        revoked.publish(broker.state, config.load(broker.state), old)
        assert eventually(lambda: is_refused(broker, "dev-a"), 20)
        _revoke(broker)
        assert eventually(lambda: not is_refused(broker, "dev-a"), 20)
    finally:
        broker.stop()
