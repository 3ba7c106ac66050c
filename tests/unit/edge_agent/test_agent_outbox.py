"""The outbox: what waits is bounded, goes in the order of its worth, and what went unsent is counted."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import limits
from contract.messages import Alert, BlobRef, Body, Dropped, ProfileWindow, RoundReply, SignedReceipt, UploadBlock
from contract.profile import Counts
from edge_agent.cli import main
from edge_agent.config import Outbox as Bounds
from edge_agent.outbox import _PRIORITY, Flow, heartbeat_is_due
from edge_agent.state import State
from tests.fakes.agent_folder import enrolled

DAY = 86400.0


class Device:
    """A state on a clock that is set."""

    def __init__(self, path: Path, **bounds: float) -> None:
        self.path, self.now, self.running = path, 1e9, 0.0
        self.bounds = Bounds(**bounds)  # type: ignore[arg-type]
        self.state = self.open()

    def open(self) -> State:
        return State(
            self.path, outbox_id="o", bounds=self.bounds, clock=lambda: self.now, monotonic=lambda: self.running
        )

    def waiting(self) -> list[Body]:
        reports = [self.state.read_report(seq) for seq in self.state.pending(10_000)]
        return [report.body for report in reports if report]

    def kinds(self) -> Counter[str]:
        return Counter(type(body).__name__ for body in self.waiting())

    def samples(self) -> int:
        return sum(body.counts.samples for body in self.waiting() if isinstance(body, ProfileWindow))


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path / "state.sqlite", max_bytes=200_000, keep_days=3.0)
    yield made
    made.state.close()


def receipt(size: int = 100) -> SignedReceipt:
    return SignedReceipt(payload=bytes(size), signature=b"")


def alert(text: str = "x") -> Alert:
    return Alert(kind="disk", text=text, at=0.0)


def window(samples: int = 5, size: int = 1000) -> ProfileWindow:
    counts = Counts(
        samples=samples, features=[[0] * size], missing=[0], predictions=[0], confidence=[0], confidence_sum=0
    )
    return ProfileWindow(bundle_sha256="b", profile_digest="p", started_at=0.0, ended_at=0.0, counts=counts)


def block(sha256: str, index: int, size: int = 10_000) -> UploadBlock:
    return UploadBlock(blob=BlobRef(sha256, 3 * size), index=index, count=3, data=bytes(size))


def reply(sha256: str | None) -> RoundReply:
    weights = BlobRef(sha256, 30_000) if sha256 else None
    return RoundReply(instruction="i", error="", examples=1, metrics={}, weights=weights, counts=None)


def test_receipts_go_first_then_alerts_then_windows_then_parts_of_rounds(device: Device) -> None:
    bodies = [reply(None), block("a", 0), window(), alert("one"), receipt(), alert("two"), window(6), receipt(200)]
    seqs = [device.state.report(body) for body in bodies]
    assert device.state.pending(100) == [seqs[index] for index in (4, 7, 3, 5, 2, 6, 0, 1)]


def test_beyond_its_bytes_the_least_important_and_oldest_go_and_are_counted(device: Device) -> None:
    for body in [receipt(), alert(), block("a", 0), block("a", 1), block("a", 2), reply("a"), reply(None)]:
        device.state.report(body)
    made = 0
    while device.kinds()["UploadBlock"]:
        device.state.report(window())
        made += 5
    assert device.kinds()["RoundReply"] == 1  # that of the update went with its blocks
    assert device.state.dropped == Dropped(rounds=4)
    while device.state.dropped.windows < 10:
        device.state.report(window())
        made += 5
    assert device.samples() + device.state.dropped.samples == made
    assert device.state.dropped == Dropped(rounds=5, windows=10, samples=50)
    while device.kinds()["ProfileWindow"]:
        assert device.state.dropped.receipts == 0
        device.state.report(receipt(5000))
    assert device.state.dropped.samples == made


def test_a_receipt_goes_only_where_nothing_but_receipts_is_left(device: Device) -> None:
    device.state.report(window())
    for _ in range(60):
        device.state.report(receipt(5000))
    assert device.kinds()["ProfileWindow"] == 0
    assert device.state.dropped.receipts > 0
    assert device.kinds()["SignedReceipt"] + device.state.dropped.receipts == 60
    assert device.state.dropped.windows == 1


def test_that_reports_are_dropped_is_said_once_until_it_was_heard(device: Device) -> None:
    def overflow() -> None:
        for _ in range(300):
            device.state.report(window())

    overflow()
    (said,) = [body for body in device.waiting() if isinstance(body, Alert)]
    assert (said.kind, said.at) == ("outbox", device.now)
    overflow()
    assert device.kinds()["Alert"] == 1
    event = device.state.last_event("outbox")
    assert event is not None
    assert "dropped" in event.text
    device.state.forget("o", device.state.pending(1))
    assert device.kinds()["Alert"] == 0
    overflow()
    assert device.kinds()["Alert"] == 1


def test_reports_age_while_the_agent_runs_whatever_its_clock_says(device: Device) -> None:
    for body in (receipt(), window(3), reply(None)):
        device.state.report(body)
    device.now = 4e9  # the clock jumps to 2096
    device.state.expire()
    assert device.state.dropped == Dropped()
    device.running += 2 * DAY
    device.state.report(window(4))
    device.state.close()
    device.running = 0.0  # the machine starts again
    device.state = device.open()
    device.running += 0.9 * DAY
    device.state.expire()
    assert device.state.dropped == Dropped()
    device.running += 0.2 * DAY
    device.state.expire()
    assert device.state.dropped == Dropped(windows=1, samples=3, rounds=1)
    assert device.kinds() == {"SignedReceipt": 1, "ProfileWindow": 1, "Alert": 1}


def test_windows_should_grow_while_the_outbox_is_nearly_full_of_more_than_rounds(device: Device) -> None:
    for index in range(3):
        device.state.report(block("a", index, 60_000))
    assert device.state.has_room_for_windows()
    assert not device.state.has_room(50_000)
    while device.state.has_room_for_windows():
        device.state.report(window())
    assert device.state.dropped.windows == 0
    device.state.forget("o", device.state.pending(200))
    assert device.state.has_room_for_windows()
    assert device.state.has_room(50_000)


def test_an_undone_transaction_takes_its_drops_back(device: Device) -> None:
    device.state.report(window(7))

    def fail() -> None:
        with device.state.transaction():
            for _ in range(100):
                device.state.report(receipt(5000))
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        fail()
    assert device.state.dropped == Dropped()
    assert (device.kinds(), device.samples()) == ({"ProfileWindow": 1}, 7)
    assert device.state.has_room(190_000)


@given(
    made=st.lists(
        st.one_of(
            st.integers(1, 40_000).map(receipt),
            st.integers(1, 20_000).map(lambda size: window(size % 7, size)),
            st.tuples(st.sampled_from("ab"), st.integers(0, 2)).map(lambda pair: block(*pair)),
            st.sampled_from(["a", None]).map(reply),
            st.text(max_size=200).map(alert),
            st.integers(0, 12),  # so many are acknowledged
        ),
        max_size=60,
    )
)
def test_whatever_is_reported_the_bound_holds_and_every_sample_is_waiting_sent_or_counted_as_dropped(
    tmp_path_factory: pytest.TempPathFactory, made: list[Body | int]
) -> None:
    bound = limits.MESSAGE_BYTES
    device = Device(tmp_path_factory.mktemp("outbox") / "state.sqlite", max_bytes=bound)
    reported, sent, receipts = 0, 0, 0
    for body in made:
        if isinstance(body, int):
            before = device.samples()
            device.state.forget("o", device.state.pending(body))
            sent += before - device.samples()
            continue
        receipts += isinstance(body, SignedReceipt)
        reported += body.counts.samples if isinstance(body, ProfileWindow) else 0
        device.state.report(body)
        (size,) = device.state._rows("select coalesce(sum(size), 0) from outbox")[0]
        assert size <= bound
        assert device.state.has_room(bound - size)
        assert not device.state.has_room(bound - size + 1)
    assert device.samples() + sent + device.state.dropped.samples == reported
    if device.state.dropped.receipts:
        assert receipts * 40_000 > bound
    device.state.close()


def test_a_report_that_nobody_confirms_is_sent_again_ever_later() -> None:
    flow, sent = Flow(retry_s=10), []
    for second in range(2000):
        for seq in flow.due([1], float(second)):
            flow.sent(seq, float(second))
            sent.append(second)
    assert sent == [0, 10, 30, 70, 150, 310, 630, 1270, 1910]


def test_a_more_important_report_overtakes_and_does_not_make_others_go_twice() -> None:
    flow = Flow(retry_s=10)
    for seq in flow.due(list(range(10, 26)), 0.0):
        flow.sent(seq, 0.0)
    assert flow.due([1, *range(10, 25)], 1.0) == []  # eight are on their way
    assert flow.due([1, *range(11, 26)], 1.0) == [1]


def test_every_kind_of_report_has_a_priority() -> None:
    assert set(_PRIORITY) == set(get_args(Body))


def test_what_the_broker_does_not_have_yet_is_not_due_however_long_that_takes() -> None:
    flow = Flow(retry_s=10)
    assert flow.due([1], 0.0) == [1]
    flow.sent(1, 0.0)
    for second in range(1, 40):
        assert flow.due([1], float(second), on_the_way=[1]) == []
    assert flow.due([1], 48.9) == []
    assert flow.due([1], 49.0) == [1]  # ten seconds after the broker had it


def test_a_heartbeat_waits_behind_reports_but_not_for_ever() -> None:
    assert heartbeat_is_due(100.0, 100.0, 10.0, busy=False)
    assert not heartbeat_is_due(99.9, 100.0, 10.0, busy=False)
    assert not heartbeat_is_due(119.9, 100.0, 10.0, busy=True)
    assert heartbeat_is_due(120.0, 100.0, 10.0, busy=True)
    assert heartbeat_is_due(100.0, 0.0, 10.0, busy=True)  # the first word of a connection


def test_a_report_that_the_disk_changed_is_counted_as_dropped_and_said(device: Device) -> None:
    seq = device.state.report(window(9))
    device.state.report(receipt())
    device.state._rows("update outbox set body = x'c1' where seq = ?", seq)
    assert device.state.read_report(seq) is None
    assert device.state.dropped == Dropped(windows=1, samples=9)
    assert device.kinds() == {"SignedReceipt": 1, "Alert": 1}
    assert [body.kind for body in device.waiting() if isinstance(body, Alert)] == ["damaged"]
    event = device.state.last_event("damaged")
    assert event is not None
    assert f"report {seq}" in event.text


def test_the_status_says_what_was_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = enrolled(tmp_path / "agent", tmp_path / "site")
    state = State(folder.state, outbox_id="o", bounds=Bounds(max_bytes=limits.MESSAGE_BYTES))
    while state.dropped.windows < 2:
        state.report(window(5))
    state.close()
    assert main(["status", "--state", str(folder.root)]) == 0
    assert "dropped unsent   2 windows, 10 samples\n" in capsys.readouterr().out
