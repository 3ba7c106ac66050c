"""The verdict on a bundle: bad as soon as it can no longer pass, good after its time and its inferences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.config import Health
from edge_agent.health import Meter, Tally, judge

HEALTH = Health(
    probation_s=60.0,
    probation_inferences=100,
    max_latency_ms=20.0,
    max_error_share=0.1,
    max_nan_share=0.01,
    min_confidence=0.5,
)
WELL = Tally(seconds=60.0, inferences=100, confidence=80.0)


@pytest.mark.parametrize(
    ("tally", "word", "reason"),
    [
        (WELL, "good", ""),
        (Tally(seconds=59.0, inferences=100, confidence=80.0), "unknown", ""),
        (Tally(seconds=9999.0, inferences=99, confidence=80.0), "unknown", ""),
        (Tally(inferences=1, errors=1), "unknown", ""),
        (Tally(inferences=11, errors=10), "unknown", ""),
        (Tally(inferences=11, errors=11), "bad", "11 of 11 inferences failed, health.max_error_share is 0.1"),
        (Tally(inferences=2, not_finite=1), "unknown", ""),
        (Tally(inferences=2, not_finite=2), "bad", "2 of 2 outputs were not finite, health.max_nan_share is 0.01"),
        (Tally(inferences=1000, not_finite=10, confidence=900.0, seconds=60.0), "good", ""),
        (Tally(inferences=50, slow=5, confidence=45.0), "unknown", ""),
        (Tally(inferences=50, slow=6, confidence=45.0), "bad", "6 of 50 inferences were too slow"),
        (Tally(inferences=99, confidence=9.9), "unknown", ""),
        (Tally(inferences=100, confidence=49.0), "bad", "the mean confidence of 100 inferences is 0.490"),
    ],
)
def test_each_criterion_has_its_own_sentence(tally: Tally, word: str, reason: str) -> None:
    verdict = judge(tally, HEALTH)
    assert verdict.word == word
    assert reason in verdict.reason
    assert bool(verdict.reason) == (word == "bad")


def test_without_limits_only_time_and_inferences_count() -> None:
    health = Health(probation_s=0.0, probation_inferences=0, max_error_share=1.0, max_nan_share=1.0)
    assert judge(Tally(), health).word == "good"
    assert judge(Tally(inferences=5, errors=3, not_finite=2, slow=5), health).word == "good"


counts = st.integers(0, 300)


@given(counts, counts, counts, counts, st.floats(0, 1))
def test_a_bad_bundle_stays_bad_whatever_else_it_does_wrong(
    fine: int, errors: int, not_finite: int, slow: int, confidence: float
) -> None:
    made = fine + errors + not_finite
    slow = min(slow, fine)
    tally = Tally(
        inferences=made, errors=errors, not_finite=not_finite, slow=slow, confidence=fine * confidence, seconds=60.0
    )
    if judge(tally, HEALTH).word == "bad" and made >= HEALTH.probation_inferences:
        worse = tally + Tally(inferences=1, errors=1)
        assert judge(worse, HEALTH).word == "bad" or fine * confidence < HEALTH.min_confidence * fine


@given(st.lists(st.tuples(counts, counts)))
def test_tallies_add_up_in_any_order(parts: list[tuple[int, int]]) -> None:
    tallies = [Tally(inferences=a + b, errors=b, seconds=1.0) for a, b in parts]
    assert sum(tallies, Tally()) == sum(reversed(tallies), Tally())


def test_a_meter_counts_what_it_is_told_and_a_batch_is_as_slow_as_its_mean() -> None:
    meter = Meter(HEALTH)
    meter.served(10, 0.19, 8.0)
    meter.served(10, 0.21, 8.0)
    meter.failed(2)
    meter.not_finite(3)
    assert meter.read() == Tally(inferences=25, errors=2, not_finite=3, slow=10, confidence=16.0)
    assert Meter(Health()).read() == Tally()
