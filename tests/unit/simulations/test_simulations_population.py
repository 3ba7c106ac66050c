"""Samples of many clients on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch

from contract.transform import Transform, TransformSpec
from coordinator.rounds.settings import RunConfig
from simulations.cohort import learner
from simulations.cohort.learning import CohortLearning
from simulations.errors import SimulationError
from simulations.partition import Plan
from simulations.population import Population
from simulations.run import Outcome, Samples, Scenario, simulate

X = np.arange(40, dtype=np.float32).reshape(10, 4)
Y = np.arange(10, dtype=np.int64)
PARTS = [np.array([7, 2, 9]), np.array([0]), np.array([1, 3, 4, 5, 6, 8])]


def test_each_client_is_a_range_with_its_own_samples(tmp_path: Path) -> None:
    Population.create(tmp_path / "people", X, Y, PARTS)
    found = Population(tmp_path / "people")
    assert found.clients == 3
    for client, rows in enumerate(PARTS):
        found.ahead(found.rows(client))
        np.testing.assert_array_equal(found.x[found.rows(client)], X[rows])
        np.testing.assert_array_equal(found.y[found.rows(client)], Y[rows])
    assert [path.name for path in tmp_path.iterdir()] == ["people"]


def test_a_folder_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("letters")
    with pytest.raises(SimulationError, match="there already"):
        Population.create(tmp_path / "mine", X, Y, PARTS)
    assert (tmp_path / "mine").read_text() == "letters"


def test_a_population_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SimulationError, match="cannot be written"):
        Population.create(tmp_path / "file" / "people", X, Y, PARTS)
    with pytest.raises(IndexError):
        Population.create(tmp_path / "people", X, Y, [*PARTS, np.array([10])])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["x.npy", "y.npy", "offsets.npy"])
@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_a_file_cut_short_is_refused_by_its_name(tmp_path: Path, name: str, size: int) -> None:
    Population.create(tmp_path / "people", X, Y, PARTS)
    path = tmp_path / "people" / name
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(SimulationError, match=name):
        Population(tmp_path / "people")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npy", X.astype(np.float64), "float32"),
        ("y.npy", Y[:9], "does not fit"),
        ("offsets.npy", np.array([0, 3, 11]), "does not rise"),
        ("offsets.npy", np.array([0, 4, 3, 10]), "does not rise"),
        ("offsets.npy", np.array([1, 10]), "does not rise"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, name: str, content: np.ndarray, message: str) -> None:
    Population.create(tmp_path / "people", X, Y, PARTS)
    np.save(tmp_path / "people" / name, content)
    with pytest.raises(SimulationError, match=message):
        Population(tmp_path / "people")


def test_training_from_disk_gives_what_training_from_memory_gives(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    x = random.standard_normal((300, 6)).astype(np.float32)
    data = Samples(x, x[:, :3].argmax(1).astype(np.int64))

    def run(folder: Path | None) -> Outcome:
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        flat = Transform(TransformSpec(input_shape=[6], steps=[], features=[]))
        learning = CohortLearning(learner.of_module(module, 3), flat, data, data, batch=8, folder=folder)
        config = RunConfig(rounds=2, learning_rate=0.05, fraction=0.5, seed=4)
        return simulate(learning, Scenario(12, Plan("dirichlet", 0.5), config))

    memory, disk = run(None), run(tmp_path / "people")
    for name, value in memory.weights.items():
        np.testing.assert_allclose(disk.weights[name], value, atol=1e-6)
    assert Population(tmp_path / "people").clients == 12
