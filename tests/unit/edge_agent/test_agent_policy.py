"""The owner's rules: windows on the wall, delays that a restart does not draw again, metered networks, and a cap."""

import threading
import time
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import policy, windows
from edge_agent.config import Updates
from edge_agent.errors import HeldError
from edge_agent.gate import Gate
from edge_agent.partfile import PartFile
from edge_agent.state import State
from edge_agent.transfer import Transfer
from tests.fakes.agent_parts import CONFIG
from tests.unit.edge_agent.test_agent_transfer import Source

HOUR = 3600


@pytest.mark.parametrize(
    ("text", "hour", "wait_h"),
    [
        ("02:00-05:00", 1, 1), ("02:00-05:00", 2, 0), ("02:00-05:00", 4.99, 0), ("02:00-05:00", 5, 21),
        ("22:30-04:00", 23, 0), ("22:30-04:00", 0, 0), ("22:30-04:00", 4, 18.5), ("22:30-04:00", 12, 10.5),
        ("00:00-24:00", 13, 0), ("20:00-00:00", 23.9, 0), ("20:00-00:00", 0, 20), ("20:00-24:00", 23.9, 0),
    ],
)  # fmt: skip
def test_a_window_is_open_from_its_begin_to_before_its_end_also_across_midnight(
    text: str, hour: float, wait_h: float
) -> None:
    assert windows.until_open_s([text], hour * HOUR) == pytest.approx(wait_h * HOUR)


def test_the_nearest_of_several_windows_counts_and_without_any_it_is_always_open() -> None:
    assert windows.until_open_s(["02:00-03:00", "14:00-15:00"], 13 * HOUR) == HOUR
    assert windows.until_open_s([], 13 * HOUR) == 0


@pytest.mark.parametrize(
    "text", ["", "2:00-5:00", "02:00", "02:00-05:00 ", "25:00-26:00", "02:60-03:00", "24:00-02:00", "02:00-24:01",
             "02:00-02:00", "00:00-00:00", "٠٢:00-05:00"],
)  # fmt: skip
def test_what_is_no_window_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"window|minute|after"):
        windows.window(text)


@given(st.integers(0, 1439), st.integers(0, 1439), st.integers(0, 86_399))
def test_when_the_wait_is_over_the_window_is_open(begin: int, end: int, now: int) -> None:
    if begin == end:
        return
    text = f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
    wait = windows.until_open_s([text], now)
    assert 0 <= wait < windows.DAY_S
    assert windows.until_open_s([text], (now + wait) % windows.DAY_S) == 0


def test_a_random_delay_is_the_same_after_a_restart_and_spread_over_a_fleet() -> None:
    delays = [policy.delay_s(600, f"meter-{number}", "digits", 3) for number in range(2000)]
    assert delays == [policy.delay_s(600, f"meter-{number}", "digits", 3) for number in range(2000)]
    assert all(0 <= delay < 600 for delay in delays)
    quarters = [sum(quarter * 150 <= delay < (quarter + 1) * 150 for delay in delays) for quarter in range(4)]
    assert all(400 < count < 600 for count in quarters)
    assert policy.delay_s(600, "meter-1", "digits", 4) != policy.delay_s(600, "meter-1", "digits", 3)


def test_each_rule_holds_an_update_and_says_why() -> None:
    def decide(*, delay: float = 0.0, hour: int = 12, metered: bool = False, **rules: object) -> policy.Verdict:
        updates = msgspec.convert(rules, Updates)
        return policy.decide(updates, delay_left_s=delay, local_s=hour * HOUR, metered=metered)

    assert decide() == policy.Verdict(0.0)
    assert decide(delay=7.0) == policy.Verdict(7.0, "waits for its random delay, 7 s more")
    assert decide(maintenance=["02:00-05:00"]) == (14 * HOUR, "waits for the maintenance window 02:00-05:00", False)
    assert decide(maintenance=["02:00-05:00"], hour=3).wait_s == 0
    assert decide(metered=True).wait_s == 0
    assert policy.decide(Updates(metered="never"), delay_left_s=0, local_s=0, metered=True).wait_s > 0
    assert policy.decide(Updates(metered="never"), delay_left_s=0, local_s=0, metered=False).wait_s == 0
    assert policy.decide(Updates(metered="delta"), delay_left_s=0, local_s=0, metered=True).patches_only
    assert not policy.decide(Updates(metered="delta"), delay_left_s=0, local_s=0, metered=False).patches_only


@given(st.floats(1.0, 1e6), st.lists(st.tuples(st.floats(0, 5), st.integers(1, 131_072)), max_size=50))
def test_a_bucket_never_gives_more_than_its_rate_a_burst_and_one_piece(
    rate: float, asks: list[tuple[float, int]]
) -> None:
    bucket, now, taken = policy.Bucket(rate, 0.0), 0.0, 0
    for pause, size in asks:
        now += pause
        if bucket.take([size], now):
            taken += size
    assert taken <= rate * (now + bucket.BURST_S) + 131_072 + 1


def test_a_bucket_gives_its_rate_on_average_and_all_where_there_is_no_cap() -> None:
    bucket, taken = policy.Bucket(10_000, 0.0), 0
    for tick in range(4000):
        taken += 5000 * bucket.take([5000], tick / 10)
    assert 0.95 < taken / (10_000 * 400) < 1.05
    assert policy.Bucket(0, 0.0).take([10**9] * 3, 0.0) == 3


class Wall:
    def __init__(self, hour: float) -> None:
        self.now = time.mktime((2026, 3, 3, 0, 0, 0, 0, 0, -1)) + hour * HOUR

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state.sqlite", outbox_id="o")


def gate(root: Path, state: State, wall: Wall, **rules: object) -> Gate:
    config = msgspec.structs.replace(CONFIG, updates=msgspec.convert(rules, Updates))
    return Gate(config, root, state=state, clock=wall, monotonic=lambda: wall.now)


def test_a_gate_opens_with_its_window_and_says_once_why_it_is_closed(tmp_path: Path, state: State) -> None:
    wall = Wall(1)
    made = gate(tmp_path, state, wall, maintenance=["02:00-05:00"])
    for _ in range(3):
        with pytest.raises(HeldError, match="digits waits for the maintenance window 02:00-05:00"):
            made.check("digits", 1)
    event = state.last_event("held")
    assert event is not None
    assert event.text == "digits waits for the maintenance window 02:00-05:00"
    assert state.get("held", str, "") == "digits waits for the maintenance window 02:00-05:00"
    wall.now += 1.5 * HOUR
    assert made.check("digits", 1) == policy.Verdict(0.0)
    assert state.get("held", str, "") == ""
    wall.now += 3 * HOUR
    with pytest.raises(HeldError):
        made.still("digits")


def test_a_random_delay_goes_on_after_a_restart_and_begins_anew_with_a_new_wish(tmp_path: Path, state: State) -> None:
    running = [100.0]
    state.running_s = lambda: running[0]  # type: ignore[method-assign]
    delays = {revision: policy.delay_s(1000, CONFIG.device, "digits", revision) for revision in (1, 2)}
    for revision in (1, 2):
        begun = running[0]
        for _ in range(2):  # the second is another start
            made = gate(tmp_path, state, Wall(1), random_delay_s=1000)
            running[0] = begun + delays[revision] * 0.9
            with pytest.raises(HeldError, match="random delay"):
                made.check("digits", revision)
            running[0] = begun + delays[revision] * 0.95
            with pytest.raises(HeldError):
                made.check("digits", revision)
        begun_at = state.get("first seen digits", tuple[int, float], (0, 0.0))[1]
        running[0] = begun_at + delays[revision] + 0.01
        assert made.check("digits", revision).wait_s == 0


def test_the_metered_file_is_looked_at_again_and_one_that_cannot_be_read_counts_as_metered(
    tmp_path: Path, state: State
) -> None:
    wall, file = Wall(1), tmp_path / "metered"
    made = gate(tmp_path, state, wall, metered="never", metered_file="metered")
    with pytest.raises(HeldError, match="not metered"):
        made.check("digits", 1)
    for text, metered in (("0\n", False), ("yes\n", True), ("no", False), ("TRUE", True), ("", False), ("1", True)):
        file.write_text(text)
        wall.now += 10
        if metered:
            with pytest.raises(HeldError):
                made.check("digits", 1)
        else:
            made.check("digits", 1)
    allowed = gate(tmp_path, state, wall, metered="allow", metered_file="metered")
    assert allowed.check("digits", 1) == policy.Verdict(0.0)


def test_a_pull_under_a_cap_asks_as_fast_as_the_cap_and_its_waiting_is_no_silence(tmp_path: Path) -> None:
    source = Source(tmp_path, bytes(4 * 131_072))
    now = [0.0]
    transfer = Transfer(
        source.link, bytes_per_s=1310.72, patience_s=50.0, retry_s=5.0, stopping=threading.Event(), clock=lambda: now[0]
    )
    source.transfer = transfer
    asked_at: list[float] = []
    real = source.answer

    def answer(message: object) -> None:
        asked_at.append(now[0])
        real(message)  # type: ignore[arg-type]

    source.link.answer = answer

    def later() -> bool:
        now[0] += 10.0
        return False

    part = PartFile(tmp_path / "x.part", source.ref)
    transfer.fill(part, later)
    assert part.digest() == source.ref.sha256
    assert len(asked_at) == 4
    assert all(95 <= after - before <= 115 for before, after in pairwise(asked_at))
