"""Simulations by the cohort engine: the strategies of the fleet, what devices would have learnt, and the command."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract import bundle, tensors
from contract.errors import TransformError
from contract.tensors import Arrays
from contract.transform import Transform, TransformSpec
from coordinator.rounds.grid import GridBase
from coordinator.rounds.settings import RunConfig
from simulations.cohort import learner
from simulations.cohort.learning import CohortLearning
from simulations.errors import SimulationError
from simulations.partition import Plan
from simulations.population import Population
from simulations.run import Samples, Scenario, simulate

DIGITS = Path(__file__).parents[2] / "data" / "digits" / "bundle.zip"
CONFIG = RunConfig(rounds=2, epochs=2, learning_rate=0.05, momentum=0.9, fraction=0.5, seed=4)
FLAT = Transform(TransformSpec(input_shape=[6], steps=[], features=[]))


class OneByOne:
    """The same learning, whose grid gives a reply of each client."""

    def __init__(self, inner: CohortLearning) -> None:
        self.inner, self.start, self.plan = inner, inner.start, inner.plan
        self.labels, self.groups = inner.labels, inner.groups

    def grid(self, rows: Mapping[str, np.ndarray], *, fold: bool, **options: Any) -> GridBase:
        assert fold
        return self.inner.grid(rows, fold=False, **options)

    def measure(self, weights: Arrays) -> dict[str, float]:
        return self.inner.measure(weights)


def samples(count: int, seed: int) -> Samples:
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, 6)).astype(np.float32)
    return Samples(x, (x[:, :3].argmax(1)).astype(np.int64))


def thirds(train: Samples | None = None, **options: Any) -> CohortLearning:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    return CohortLearning(
        learner.of_module(module, 3), FLAT, train or samples(600, 1), samples(300, 2), batch=8, **options
    )


def error(found: Arrays, wanted: Arrays, start: Arrays) -> float:
    """Of the update, relative."""
    away = sum(float(((found[name] - wanted[name]) ** 2).sum()) for name in start)
    moved = sum(float(((wanted[name] - start[name]) ** 2).sum()) for name in start)
    return float((away / moved) ** 0.5)


def test_accuracy_grows_and_each_round_says_how_many_answered() -> None:
    told: list[Any] = []
    outcome = simulate(thirds(), Scenario(20, Plan("dirichlet", 0.5), CONFIG), on_score=told.append)
    assert [(score.round, score.clients, score.failed) for score in told] == [(0, 20, 0), (1, 10, 0), (2, 10, 0)]
    assert outcome.scores[-1].accuracy > max(0.6, outcome.scores[0].accuracy)
    assert sum(map(len, outcome.parts)) == 600


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_one_reply_for_all_is_what_the_replies_of_each_come_to(mu: float) -> None:
    config = RunConfig(rounds=2, epochs=1, learning_rate=0.1, fraction=0.5, proximal_mu=mu)
    learning = thirds()
    folded = simulate(learning, Scenario(12, Plan("dirichlet", 0.5), config))
    each = simulate(OneByOne(learning), Scenario(12, Plan("dirichlet", 0.5), config))
    assert error(folded.weights, each.weights, learning.start) < 1e-4
    for one, other in zip(folded.scores, each.scores, strict=True):
        assert vars(one) == pytest.approx(vars(other), abs=1e-4)


@pytest.mark.parametrize("fold", [True, False])
def test_a_client_whose_samples_are_no_numbers_fails_alone(*, fold: bool) -> None:
    train = samples(600, 1)
    train.x[7] = np.nan
    config = RunConfig(rounds=1, epochs=1, learning_rate=0.1, momentum=0.0)
    learning = thirds(train)
    outcome = simulate(learning if fold else OneByOne(learning), Scenario(10, Plan(), config))
    assert [(score.clients, score.failed) for score in outcome.scores] == [(9, 1), (9, 1)]
    assert all(np.isfinite(array).all() for array in outcome.weights.values())


def test_a_round_in_which_nobody_learns_says_so() -> None:
    config = RunConfig(rounds=1, learning_rate=1e30)
    with pytest.raises(SimulationError, match="no client's training stayed finite; lower the learning rate"):
        simulate(thirds(), Scenario(3, Plan(), config))
    with pytest.raises(TransformError, match="sample 0 is not finite"):
        thirds(Samples(np.full((5, 6), np.nan, np.float32), np.zeros(5, np.int64)))


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    def weights(seed: int) -> bytes:
        config = RunConfig(rounds=2, epochs=1, fraction=0.5, seed=seed)
        return b"".join(
            array.tobytes()
            for array in simulate(thirds(), Scenario(8, Plan("dirichlet", 1.0), config)).weights.values()
        )

    assert weights(1) == weights(1)
    assert weights(1) != weights(2)


@pytest.mark.slow
def test_the_cohort_learns_what_devices_would_have_learnt(tmp_path: Path) -> None:
    """LiteRT there, torch here; the model has convolutions, and rounds build on each other."""
    options = ["digits", "--bundle", str(DIGITS), "--clients", "10", "--rounds", "2", "--epochs", "2", "--seed", "5"]
    shown, weights = {}, {}
    for engine in ("device", "cohort"):
        out = tmp_path / f"{engine}.safetensors"
        command = [sys.executable, "-m", "fieldfare", "simulate", *options, "--engine", engine, "--out", str(out)]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
        shown[engine], weights[engine] = json.loads(done.stdout), tensors.load(out.read_bytes())
    start = tensors.load(bundle.unpack(DIGITS.read_bytes()).files["weights"])
    assert error(weights["cohort"], weights["device"], start) < 1e-3
    assert shown["device"]["client_samples"] == shown["cohort"]["client_samples"]
    for one, other in zip(shown["device"]["rounds"], shown["cohort"]["rounds"], strict=True):
        assert one == pytest.approx(other, abs=1e-3)


@pytest.mark.slow
def test_every_keras_layer_that_simulations_know_does_what_keras_does() -> None:
    """Logits in inference and in training, and the moments that BatchNormalization keeps."""
    command = [sys.executable, "-m", "tests.fakes.keras_chain"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for name, differences in told.items():
        assert max(differences) < 1e-5, (name, differences)


@pytest.mark.slow
def test_the_command_needs_nothing_but_a_task(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fieldfare", "simulate"]
    options = ["digits", "--clients", "4", "--rounds", "1", "--partition-plot", str(tmp_path / "parts.png")]
    options += ["--population", str(tmp_path / "people")]
    run = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    assert (tmp_path / "parts.png").read_bytes().startswith(b"\x89PNG")
    assert run.stdout.splitlines()[-1].startswith(
        "4 clients with 161 to 162 samples (median 162) and 10 to 10 classes, "
    )
    assert Population(tmp_path / "people").clients == 4
    assert "clients side by side, " in run.stderr
    for options, sentence in (
        (["--engine", "magic"], "--engine magic: take cohort or device"),
        (["--path", "magic"], "no path 'magic'; there are dense kernels, convolutions, vmap"),
        (["--path", "dense kernels"], "dense kernels train nothing but dense layers"),
        (["--bundle", str(DIGITS), "--engine", "device", "--batch", "8"], "--batch, --path and --population are"),
        (["--population", str(tmp_path)], f"{tmp_path} is there already; remove it, or name another"),
    ):
        failed = subprocess.run([*command, "digits", *options], capture_output=True, text=True, check=False)
        assert (failed.returncode, failed.stderr.splitlines()[-1][: len(sentence) + 10]) == (
            1,
            f"fieldfare: {sentence}"[: len(sentence) + 10],
        )
