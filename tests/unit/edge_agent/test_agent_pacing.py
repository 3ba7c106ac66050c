"""The pace follows the link: wide windows on fast ones, no repeated question on slow ones."""

from contract import limits
from edge_agent.pacing import Pace

BLOCK = limits.BLOCK_BYTES
SLOW_S = 10.5  # a block of 128 KiB at 100 kbit/s


def test_over_2g_two_blocks_are_on_their_way_and_none_is_asked_for_again_while_bytes_come() -> None:
    pace = Pace(window=8, retry_s=10.0)
    assert pace.room(0) == 2
    pace.asked(100.0, idle=True)
    assert not any(pace.lost(100.0 + second, quiet_s=0.1) for second in range(25))
    pace.arrived(100.0 + SLOW_S + 0.8, BLOCK)
    pace.arrived(100.0 + 2 * SLOW_S + 0.8, BLOCK)
    assert (pace.window, pace.room(1), pace.room(2)) == (2, 1, 0)
    assert not pace.lost(100.0 + 3 * SLOW_S, quiet_s=0.1)


def test_where_the_wire_cannot_be_watched_the_measured_rate_says_what_is_late() -> None:
    pace = Pace(window=8, retry_s=10.0)
    pace.asked(0.0, idle=True)
    assert not pace.lost(29.0, None)
    assert pace.lost(30.0, None)
    pace.arrived(SLOW_S, BLOCK)
    assert not pace.lost(SLOW_S + 4 * SLOW_S - 1, None)
    assert pace.lost(SLOW_S + 4 * SLOW_S, None)


def test_a_fast_link_gets_the_whole_window_after_a_few_blocks_and_asks_for_several_at_once() -> None:
    pace = Pace(window=8, retry_s=10.0)
    pace.asked(0.0, idle=True)
    for number in range(2):
        pace.arrived(0.1 + 0.01 * number, BLOCK)
    assert pace.window == 8
    assert [pace.room(on_their_way) for on_their_way in (0, 4, 5, 8)] == [8, 4, 0, 0]


def test_silence_on_the_wire_says_that_blocks_are_lost_and_each_repetition_waits_longer() -> None:
    pace = Pace(window=8, retry_s=10.0)
    pace.asked(0.0, idle=True)
    pace.arrived(0.1, BLOCK)
    assert not pace.lost(9.0, quiet_s=8.9)
    assert pace.lost(10.2, quiet_s=10.1)
    pace.repeated(10.2)
    assert not pace.lost(29.0, quiet_s=28.0)
    assert pace.lost(31.0, quiet_s=30.0)
    pace.arrived(31.5, BLOCK)
    assert pace.lost(42.0, quiet_s=10.0)


def test_where_other_messages_keep_the_wire_busy_time_says_it_in_the_end() -> None:
    pace = Pace(window=8, retry_s=10.0)
    pace.asked(0.0, idle=True)
    pace.arrived(0.1, BLOCK)
    assert not pace.lost(30.0, quiet_s=0.5)
    assert pace.lost(30.2, quiet_s=0.5)


def test_a_window_of_one_is_one() -> None:
    pace = Pace(window=1, retry_s=1.0)
    assert (pace.room(0), pace.room(1)) == (1, 0)


def test_a_list_of_blocks_that_came_at_once_does_not_make_a_slow_link_look_fast() -> None:
    pace = Pace(window=8, retry_s=2.0)
    pace.asked(0.0, idle=True)
    pace.arrived(0.7, 96)
    assert pace.window == 2
    pace.asked(0.8, idle=True)
    assert not any(pace.lost(0.8 + second, quiet_s=0.1) for second in range(12))
