import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations import partition
from simulations.errors import SimulationError


def check_partition(parts: list[np.ndarray], samples: int, clients: int) -> None:
    assert len(parts) == clients
    assert sorted(np.concatenate(parts).tolist()) == list(range(samples))


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**31))
def test_iid_gives_every_sample_to_exactly_one_client_and_sizes_differ_by_one(samples, clients, seed):
    if samples < clients:
        with pytest.raises(SimulationError):
            partition.iid(samples, clients, seed=seed)
        return
    parts = partition.iid(samples, clients, seed=seed)
    check_partition(parts, samples, clients)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(1, 12), st.floats(0.3, 100), st.integers(0, 2**31))
def test_dirichlet_gives_every_sample_to_exactly_one_client(clients, alpha, seed):
    y = np.random.default_rng(0).integers(0, 5, 300)
    parts = partition.dirichlet(y, clients, alpha=alpha, seed=seed)
    check_partition(parts, 300, clients)
    again = partition.dirichlet(y, clients, alpha=alpha, seed=seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_a_small_alpha_skews_the_labels_and_a_large_one_does_not():
    y = np.tile(np.arange(10), 300)

    def largest_share(alpha: float) -> float:
        parts = partition.dirichlet(y, 5, alpha=alpha, seed=1)
        return float(np.mean([np.bincount(y[rows], minlength=10).max() / len(rows) for rows in parts]))

    assert largest_share(0.1) > 0.3
    assert largest_share(1000.0) < 0.13


def test_what_cannot_be_dealt_out_is_refused_with_a_way_out():
    with pytest.raises(SimulationError, match="fewer clients"):
        partition.dirichlet(np.zeros(10, int), 10, alpha=0.001, seed=0)
    with pytest.raises(SimulationError, match="3 samples are not enough for 4 clients"):
        partition.iid(3, 4, seed=0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_a_concentration_that_is_none_is_refused(alpha):
    with pytest.raises(SimulationError, match="alpha"):
        partition.dirichlet(np.zeros(10, int), 2, alpha=alpha, seed=0)


@pytest.mark.parametrize("clients", [0, -3])
def test_no_client_at_all_is_refused(clients):
    with pytest.raises(SimulationError, match="at least one"):
        partition.iid(10, clients, seed=0)
    with pytest.raises(SimulationError, match="at least one"):
        partition.dirichlet(np.zeros(10, int), clients, alpha=1.0, seed=0)


PLANS = ["iid", "dirichlet:0.7", "shards:2", "labels:2", "quantity:0.3", "natural"]


@given(st.sampled_from(PLANS), st.integers(1, 12), st.integers(0, 2**31))
def test_every_plan_gives_every_sample_to_exactly_one_client_and_the_same_again(text, clients, seed):
    random = np.random.default_rng(0)
    y, groups = random.integers(0, 5, 300), random.integers(0, 9, 300).astype(str)
    plan = partition.parse(text)
    assert str(plan) == text
    if text == "labels:2" and clients < 3:
        with pytest.raises(SimulationError, match="at least 3 clients"):
            plan.deal(y, groups, clients, seed=seed)
        return
    parts = plan.deal(y, groups, clients, seed=seed)
    check_partition(parts, 300, 9 if text == "natural" else clients)
    again = plan.deal(y, groups, clients, seed=seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_shards_and_labels_bound_the_classes_of_a_client():
    y = np.random.default_rng(0).permutation(np.tile(np.arange(10), 300))
    parts = partition.shards(y, 50, each=2, seed=1)
    assert max(len(np.unique(y[rows])) for rows in parts) <= 3  # a shard may hold the end of one class and the next
    assert {len(rows) for rows in parts} == {60}
    parts = partition.labels(y, 30, each=3, seed=1)
    assert {len(np.unique(y[rows])) for rows in parts} == {3}


def test_a_small_alpha_skews_the_sizes_and_not_the_labels():
    y = np.tile(np.arange(4), 2500)
    parts = partition.quantity(10_000, 20, alpha=0.3, seed=1)
    sizes = sorted(map(len, parts))
    assert sizes[0] >= 1
    assert sizes[-1] > 5 * np.median(sizes)
    largest = max(parts, key=len)
    assert np.bincount(y[largest], minlength=4).max() < 0.3 * len(largest)


def test_natural_clients_are_those_who_gave_the_samples():
    parts = partition.natural(np.asarray(["b", "a", "b", "c", "a"]))
    assert [rows.tolist() for rows in parts] == [[1, 4], [0, 2], [3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic", "take iid, natural, or one of dirichlet, shards, labels, quantity with a number"),
        ("iid:3", "take iid, natural, or one of"),
        ("shards", "shards takes a number, as in shards:2"),
        ("shards:x", "shards takes a number"),
        ("shards:1.5", "takes a whole number"),
        ("labels:0", "takes a whole number of one or more"),
        ("labels:9", "take from 1 to 5 classes"),
        ("quantity:0", "the concentration must be a number above zero"),
        ("dirichlet:nan", "the concentration must be a number above zero"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(text, message):
    y = np.tile(np.arange(5), 20)
    with pytest.raises(SimulationError, match=message):
        partition.parse(text).deal(y, y.astype(str), 4, seed=0)
