"""When to connect again and in which protocol, as pure functions."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.reconnect import Backoff, Protocols, patience


@given(failures=st.integers(-5, 10_000), draw=st.floats(0, 1))
def test_a_pause_is_never_longer_than_it_may_be_and_doubles_until_then(failures: int, draw: float) -> None:
    backoff = Backoff(first_s=4.0, longest_s=120.0)
    pause = backoff.pause(failures, lambda: draw)
    assert 0 <= pause <= 120
    bound = 4.0 * 2.0 ** min(max(failures, 1) - 1, 10)
    assert pause == pytest.approx(draw * min(bound, 120.0))


def test_ten_thousand_agents_that_were_cut_off_at_once_do_not_come_back_at_once() -> None:
    dice = random.Random(7)
    backoff = Backoff()
    first = Counter(int(backoff.pause(1, dice.random)) for _ in range(10_000))
    assert max(first.values()) < 10_000 * 0.3
    later = Counter(int(backoff.pause(6, dice.random)) for _ in range(10_000))
    assert max(later.values()) < 150  # a second, of those that failed six times


def test_a_fleet_whose_broker_stays_away_tries_seldom() -> None:
    dice = random.Random(7)
    backoff = Backoff()
    attempts, now = 0, 0.0
    while now < 3600.0:
        attempts += 1
        now += backoff.pause(attempts, dice.random)
    assert attempts < 120


def test_mqtt_5_is_tried_first_and_what_worked_is_kept() -> None:
    protocols = Protocols("auto")
    assert protocols.current == "5"
    assert protocols.refused()
    assert protocols.current == "3.1.1"
    protocols.worked()
    protocols.unanswered()  # a cut, no refusal
    assert protocols.current == "3.1.1"
    assert protocols.refused()  # another broker stands there now
    assert protocols.current == "5"


def test_until_something_worked_a_broker_that_hangs_up_is_asked_in_the_other_protocol() -> None:
    protocols = Protocols("auto")
    seen = []
    for _ in range(4):
        seen.append(protocols.current)
        protocols.unanswered()
    assert seen == ["5", "3.1.1", "5", "3.1.1"]


@pytest.mark.parametrize("setting", ["5", "3.1.1"])
def test_a_protocol_that_was_demanded_is_never_left(setting: str) -> None:
    protocols = Protocols(setting)  # type: ignore[arg-type]
    assert not protocols.refused()
    protocols.unanswered()
    assert protocols.current == setting


def test_a_slow_link_has_time_for_what_is_on_its_way() -> None:
    assert patience(30, 0) == 60
    assert patience(30, 160 * 1024) > 60 + 160 * 1024 / 12_500  # what 100 kbit/s need
