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
