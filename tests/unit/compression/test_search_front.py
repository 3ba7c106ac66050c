"""Pareto fronts and promotion: laws that hold for any points."""

import math

from hypothesis import given
from hypothesis import strategies as st

from compression.search import halving, pareto
from compression.search.halving import Standing

coordinate = st.one_of(st.integers(0, 6).map(float), st.floats(allow_infinity=False), st.just(math.nan))
points = st.lists(st.tuples(coordinate, coordinate, coordinate), max_size=14)


def whole(point: tuple[float, ...]) -> bool:
    return not any(math.isnan(value) for value in point)


@given(points)
def test_no_member_of_the_front_dominates_another_and_all_others_are_dominated_or_equal(
    given_points: list[tuple[float, ...]],
) -> None:
    kept = pareto.front(given_points)
    members = [given_points[index] for index in kept]
    assert kept == sorted(set(kept))
    assert all(whole(member) for member in members)
    assert not any(pareto.dominates(a, b) for a in members for b in members)
    for point in filter(whole, given_points):
        assert point in members or any(pareto.dominates(member, point) for member in members)


@given(points, st.randoms(use_true_random=False))
def test_the_order_of_the_points_does_not_change_the_front(given_points: list[tuple[float, ...]], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = random.sample(given_points, len(given_points))
    one = {given_points[index] for index in pareto.front(given_points)}
    assert one == {shuffled[index] for index in pareto.front(shuffled)}


@given(points)
def test_a_front_of_a_front_is_itself(given_points: list[tuple[float, ...]]) -> None:
    members = [given_points[index] for index in pareto.front(given_points)]
    assert pareto.front(members) == list(range(len(members)))


@given(points)
def test_the_first_rank_is_the_front_and_each_rank_is_dominated_by_the_one_before(
    given_points: list[tuple[float, ...]],
) -> None:
    ranks = pareto.ranks(given_points)
    firsts = {given_points[i] for i in range(len(ranks)) if ranks[i] == 0 and whole(given_points[i])}
    assert firsts == {given_points[i] for i in pareto.front(given_points)}
    for i, rank in enumerate(ranks):
        if rank and whole(given_points[i]):
            before = [given_points[j] for j in range(len(ranks)) if ranks[j] == rank - 1]
            assert any(pareto.dominates(other, given_points[i]) for other in before)


@given(st.floats(0.1, 1e6), st.floats(1, 1.05))
def test_latencies_that_differ_by_noise_are_at_most_one_level_apart(microseconds: float, noise: float) -> None:
    apart = pareto.latency_level(microseconds * noise) - pareto.latency_level(microseconds)
    assert apart in {0, 1}


standings = st.lists(
    st.builds(
        Standing,
        st.sampled_from("abcdefgh"),
        st.integers(0, halving.RUNGS - 1),
        st.integers(1, 9).map(float),
        st.floats(0, 0.08),
        st.booleans(),
    ),
    max_size=20,
    unique_by=lambda standing: (standing.family, standing.rung),
)


@given(standings)
def test_only_what_may_gain_trains_longer_and_nothing_twice(given_standings: list[Standing]) -> None:
    found = halving.promotion(given_standings)
    if found is None:
        return
    assert found in given_standings
    assert found.trains
    assert 0 < found.over <= halving.TOO_FAR
    assert found.rung < halving.RUNGS - 1
    assert not any(other.family == found.family and other.rung > found.rung for other in given_standings)
    assert all(found.size < other.size for other in given_standings if other.over == 0)


@given(standings)
def test_promotion_comes_to_an_end(given_standings: list[Standing]) -> None:
    all_of_them = list(given_standings)
    for _ in range(len({s.family for s in all_of_them}) * halving.RUNGS + 1):
        found = halving.promotion(all_of_them)
        if found is None:
            return
        all_of_them.append(Standing(found.family, found.rung + 1, found.size, found.over, found.trains))
    raise AssertionError("promotion went on")


@given(st.integers(0, 10**7), st.integers(0, halving.RUNGS - 2))
def test_each_rung_trains_three_times_longer(samples: int, rung: int) -> None:
    assert halving.epochs(samples, rung + 1) == halving.FACTOR * halving.epochs(samples, rung) > 0
