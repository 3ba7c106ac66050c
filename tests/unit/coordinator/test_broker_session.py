import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import limits, topics
from coordinator.broker import acl, packets
from coordinator.broker import session as sessions
from coordinator.broker.session import ClientSession, Message


def offer(session: ClientSession, *names: str, qos: int = 1, connected: bool = True) -> list[bool]:
    return [session.offer(Message(name, b"x", qos), connected=connected) for name in names]


@given(st.lists(st.sampled_from(["offer", "send", "acknowledge", "lose"])))
def test_every_qos_1_message_is_delivered_in_order_until_it_is_acknowledged(actions: list[str]) -> None:
    session = ClientSession("a", persistent=True)
    offered: list[str] = []
    acknowledged: set[str] = set()
    unacknowledged: dict[int, str] = {}
    for action in actions:
        if action == "offer":
            offered.append(str(len(offered)))
            assert offer(session, offered[-1]) == [True]
        elif action == "send" and (delivery := session.next()) is not None:
            assert delivery.packet_id is not None
            assert delivery.packet_id not in unacknowledged
            unacknowledged[delivery.packet_id] = delivery.message.topic
        elif action == "acknowledge" and unacknowledged:
            packet_id, topic = unacknowledged.popitem()
            session.acknowledged(packet_id)
            acknowledged.add(topic)
        elif action == "lose":
            session.disconnected()
            unacknowledged.clear()
    session.disconnected()
    rest = []
    while (delivery := session.next()) is not None:
        rest.append(delivery.message.topic)
        session.acknowledged(delivery.packet_id or 0)
    assert rest == [topic for topic in offered if topic not in acknowledged]
    assert session.waiting == 0


def test_an_absent_client_keeps_only_what_was_promised() -> None:
    assert offer(ClientSession("a", persistent=True), "t", qos=0, connected=False) == [False]
    assert offer(ClientSession("a", persistent=False), "t", qos=1, connected=False) == [False]
    assert offer(ClientSession("a", persistent=True), "t", qos=1, connected=False) == [True]


def test_what_is_sent_again_is_marked_and_goes_first() -> None:
    session = ClientSession("a", persistent=True)
    offer(session, "one", "two")
    session.next()
    session.disconnected()
    again, fresh = session.next(), session.next()
    assert again is not None
    assert fresh is not None
    assert (again.message.topic, again.message.dup) == ("one", True)
    assert (fresh.message.topic, fresh.message.dup) == ("two", False)


def test_a_full_queue_drops_what_comes_and_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "QUEUED_MESSAGES", 2)
    session = ClientSession("a", persistent=True)
    assert offer(session, "one", "two", "three") == [True, True, False]
    assert session.dropped == 1


def test_no_more_than_the_window_is_unacknowledged_at_once() -> None:
    session = ClientSession("a", persistent=True)
    offer(session, *(str(index) for index in range(sessions.INFLIGHT + 1)))
    deliveries = [session.next() for _ in range(sessions.INFLIGHT + 1)]
    assert deliveries[-1] is None
    assert deliveries[0] is not None
    session.acknowledged(deliveries[0].packet_id or 0)
    assert session.next() is not None


@given(st.text(max_size=40), st.text(max_size=80))
def test_a_device_never_gets_at_anothers_topics(name: str, rest: str) -> None:
    other = "fleet/v1/dev/other/"
    if name != "other" and acl.known(name) and name != topics.COORDINATOR:
        assert not acl.may_publish(name, f"{other}up/{rest}")
        assert not acl.may_subscribe(name, f"{other}down/{rest}")
        assert not acl.may_subscribe(name, f"fleet/v1/dev/+/{rest}")
        assert not acl.may_publish(name, f"fleet/v1/dev/{name}/down/{rest}")
        assert acl.may_publish(name, f"fleet/v1/dev/{name}/up/{rest}")


def test_names_with_wildcards_are_nobody() -> None:
    assert [acl.known(name) for name in ("#", "+", "a/b", "", "meter-1", "coordinator")] == [False] * 4 + [True] * 2


def _read(data: bytes) -> object:
    async def main() -> object:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        async with asyncio.timeout(5):
            return await packets.read(reader)

    return asyncio.run(main())


@given(st.binary(max_size=64))
def test_any_bytes_are_a_packet_an_error_or_the_end(data: bytes) -> None:
    try:
        _read(data)
    except (packets.PacketError, asyncio.IncompleteReadError):
        return


def test_a_packet_is_refused_by_its_announced_length_before_it_is_read() -> None:
    length = packets.PACKET_BYTES + 1
    encoded = bytes([length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14])
    assert packets.PACKET_BYTES > limits.MESSAGE_BYTES
    with pytest.raises(packets.PacketError, match="at most"):
        _read(b"\x30" + encoded)
