"""An app's requests over any time are never more than its burst and its rate allow, and one app is not another."""

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.api_rate import Bucket, Rates, take


@given(
    gaps=st.lists(st.floats(0, 3), max_size=60),
    rate=st.floats(0.1, 50),
    burst=st.integers(1, 20),
)
def test_no_stretch_of_time_has_more_than_burst_and_rate_allow(gaps: list[float], rate: float, burst: int) -> None:
    bucket, now, taken = Bucket(float(burst), 0.0), 0.0, []
    for gap in gaps:
        now += gap
        bucket, wait = take(bucket, now, rate=rate, burst=burst)
        if wait:
            after, again = take(bucket, now + wait * 1.001 + 1e-6, rate=rate, burst=burst)
            assert again == 0
            assert after.tokens >= 0
        else:
            taken.append(now)
    for i, start in enumerate(taken):
        for j in range(i, len(taken)):
            assert j - i + 1 <= burst + rate * (taken[j] - start) + 1e-6


def test_a_burst_is_let_through_and_then_the_wait_is_said() -> None:
    rates = Rates(rate_per_s=0.5, burst=3)
    assert [rates.wait_s("a", 10.0) for _ in range(4)] == [0, 0, 0, 2]
    assert rates.wait_s("b", 10.0) == 0
    assert rates.wait_s("a", 12.0) == 0


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    bucket, _ = take(Bucket(1.0, 100.0), 100.0, rate=1, burst=1)
    assert take(bucket, 50.0, rate=1, burst=1)[1] == 1


def test_without_a_rate_nobody_waits() -> None:
    rates = Rates(rate_per_s=0.0, burst=1)
    assert {rates.wait_s("a", 1.0) for _ in range(50)} == {0}


def test_apps_without_end_take_no_memory_without_end() -> None:
    rates = Rates(rate_per_s=1.0, burst=1)
    for index in range(1000):
        rates.wait_s(f"app-{index}", 1.0)
    assert len(rates._buckets) == 256
    assert rates.wait_s("app-999", 1.0) == 1
