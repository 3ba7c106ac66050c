"""Messages about a device's presence come late, twice and out of order; the newest word holds."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.messages import Gone, Hello
from coordinator.fleet import presence


def hello(starts: int = 1, seq: int = 1, *, outbox: str = "o", connection: int = 1) -> Hello:
    return Hello(
        outbox=outbox, starts=starts, boot=f"b{starts}", connection=connection, seq=seq, agent_version="",
        runtime_version="", hardware_class="", bundles=[], samples=0, inferences=0, sent_at=0.0,
    )  # fmt: skip


def known(message: Hello) -> dict[str, object]:
    return msgspec.to_builtins(message)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("last", "next_", "newer"),
    [
        (hello(1, 1), hello(1, 1), False),
        (hello(1, 5), hello(1, 4), False),
        (hello(1, 5), hello(1, 6), True),
        (hello(2, 1), hello(1, 900), False),
        (hello(1, 900), hello(2, 1), True),
        (hello(7, 9), hello(1, 1, outbox="new"), True),
    ],
)
def test_a_hello_counts_once_and_never_after_a_later_one(last: Hello, next_: Hello, *, newer: bool) -> None:
    assert presence.is_newer(known(last), next_) == newer
    assert presence.is_newer({}, next_)


def test_only_the_connection_that_is_known_or_a_later_one_can_end() -> None:
    last = known(hello(3, 1, connection=4))
    assert presence.ends(last, Gone(boot="b3", connection=4))
    assert presence.ends(last, Gone(boot="b3", connection=5))
    assert not presence.ends(last, Gone(boot="b3", connection=3))
    assert not presence.ends(last, Gone(boot="b2", connection=9))
    assert not presence.ends({}, Gone(boot="b3", connection=4))


@given(st.data())
def test_in_whatever_order_messages_come_the_last_word_of_the_device_holds(data: st.DataObject) -> None:
    said: list[Hello | Gone] = []
    seq = 0
    for connection in range(1, data.draw(st.integers(1, 4)) + 1):
        for _ in range(data.draw(st.integers(1, 3))):
            seq += 1
            said.append(hello(1, seq, connection=connection))
        said.append(Gone(boot="b1", connection=connection))
    if alive := data.draw(st.booleans()):
        said.pop()
    last: dict[str, object] = {}
    connected = False
    for message in [*data.draw(st.permutations(said)), said[-1]]:  # at least once, and the last word comes
        if isinstance(message, Gone):
            connected = connected and not presence.ends(last, message)
        elif presence.is_newer(last, message):
            last, connected = known(message), True
    assert connected <= alive
    if alive:
        assert last["seq"] == seq
