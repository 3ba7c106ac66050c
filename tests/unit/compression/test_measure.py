"""Measuring: intervals that keep their promise, the planner's arena, and one judge for whatever made an artifact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression import arena, intervals
from compression.arena import Life
from compression.errors import ArtifactError

answers = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        st.lists(st.booleans(), min_size=n, max_size=n), st.lists(st.booleans(), min_size=n, max_size=n)
    )
)


@given(answers)
def test_a_drop_turns_its_sign_when_the_two_change_places(pair: tuple[list[bool], list[bool]]) -> None:
    base, other = (np.array(each) for each in pair)
    there, back = intervals.drop(base, other), intervals.drop(other, base)
    assert there.value == pytest.approx(base.mean() - other.mean())
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert -1 <= there.low < there.high <= 1


@pytest.mark.parametrize(("n", "lost", "won"), [(200, 0.04, 0.02), (1000, 0.02, 0.02), (500, 0.10, 0.03)])
def test_the_interval_holds_the_true_drop_in_about_95_of_100_samples(n: int, lost: float, won: float) -> None:
    random = np.random.default_rng(7)
    held = 0
    for _ in range(2000):
        draw = random.random(n)
        base, other = (draw < lost) | (draw > lost + won), draw >= lost
        found = intervals.drop(base, other)
        held += found.low <= lost - won <= found.high
    assert 0.935 <= held / 2000 <= 0.985


@pytest.mark.parametrize(("base", "other"), [([], []), ([True], [True, False])])
def test_an_interval_needs_the_same_samples_twice(base: list[bool], other: list[bool]) -> None:
    with pytest.raises(ValueError, match="same samples"):
        intervals.drop(np.array(base, bool), np.array(other, bool))


lives = st.lists(
    st.builds(
        lambda size, first, more: Life(size, first, first + more),
        st.integers(1, 500),
        st.integers(0, 9),
        st.integers(0, 4),
    ),
    max_size=12,
)


@given(lives)
def test_the_plan_is_no_less_than_what_is_alive_at_once_and_no_more_than_all(tensors: list[Life]) -> None:
    def aligned(tensor: Life) -> int:
        return -(-tensor.size // 64) * 64

    planned = arena.plan(tensors)
    at_once = max((sum(aligned(t) for t in tensors if t.first <= op <= t.last) for op in range(15)), default=0)
    assert at_once <= planned <= sum(aligned(tensor) for tensor in tensors)


def test_tensors_that_never_meet_share_a_place() -> None:
    assert arena.plan([Life(640, 0, 1), Life(640, 2, 3)]) == 640
    assert arena.plan([Life(640, 0, 2), Life(640, 2, 3)]) == 1280


@pytest.mark.parametrize("content", [b"", b"no model", b"\x1c\x00\x00\x00TFL3" + bytes(40)])
def test_what_is_no_artifact_has_no_arena(content: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"not a .tflite"):
        arena.planned_bytes(content)
