import json
import subprocess
import sys

import numpy as np
import pytest

from contract import bundle, tensors
from coordinator.rounds import flower
from coordinator.rounds.loop import make_strategy
from coordinator.rounds.settings import RunConfig, device_seed
from edge_agent import training
from edge_agent.training import TrainingRuntime
from simulations import cli
from simulations.device_loop import DeviceLoop
from simulations.errors import SimulationError
from simulations.partition import Plan
from simulations.run import RoundScore, Samples, Scenario, simulate
from simulations.virtual_grid import VirtualClient, VirtualGrid
from tests.fakes import agent_bundles, agent_models


def zero_bundle() -> bundle.Bundle:
    """A bundle whose rounds start from weights that know nothing."""
    made = bundle.unpack(agent_bundles.make())
    zeros = {name: np.zeros_like(array) for name, array in tensors.load(made.files["weights"]).items()}
    return bundle.Bundle(made.manifest, {**made.files, "weights": tensors.dump(zeros)})


def samples(count: int, seed: int) -> Samples:
    return Samples(*agent_models.samples(count, seed=seed))


CONFIG = RunConfig(rounds=3, epochs=2, learning_rate=0.2, fraction=0.5)


def test_accuracy_on_the_test_set_grows_round_by_round():
    told = []
    learning = DeviceLoop(zero_bundle(), samples(300, 1), samples(200, 2))
    outcome = simulate(learning, Scenario(6, Plan("dirichlet", 0.5), CONFIG), on_score=told.append)
    assert [score.round for score in outcome.scores] == [0, 1, 2, 3]
    assert [score.clients for score in outcome.scores] == [6, 3, 3, 3]
    assert outcome.scores[-1].accuracy > max(0.7, outcome.scores[0].accuracy)
    assert told == outcome.scores
    assert sum(map(len, outcome.parts)) == 300


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    def weights(seed: int) -> bytes:
        config = RunConfig(rounds=2, epochs=1, fraction=0.5, seed=seed)
        learning = DeviceLoop(zero_bundle(), samples(120, 1), samples(30, 2))
        outcome = simulate(learning, Scenario(4, Plan("dirichlet", 1.0), config))
        return tensors.dump(outcome.weights)

    assert weights(1) == weights(1)
    assert weights(1) != weights(2)


def test_one_round_is_the_weighted_average_of_what_the_agents_loop_gives():
    made = zero_bundle()
    base = tensors.load(made.files["weights"])
    runtime = TrainingRuntime(made.files["training"], made.manifest.training)
    clients, expected, total = {}, None, 0
    for number, count in enumerate((20, 50)):
        raw, y = agent_models.samples(count, seed=number)
        clients[f"c{number}"] = VirtualClient(made.transform.apply(raw), y)
    for name, client in clients.items():
        seed = device_seed(9, 1, name)
        result = training.train(runtime, base, client.x, client.y, epochs=2, learning_rate=0.1, seed=seed)
        scaled = {key: array.astype(np.float64) * result.examples for key, array in result.weights.items()}
        expected = scaled if expected is None else {key: expected[key] + scaled[key] for key in scaled}
        total += result.examples
    grid = VirtualGrid(clients, runtime, like=base, seed=9)
    strategy = make_strategy(RunConfig(), cohort=2, smallest=1)
    config = flower.ConfigRecord({"epochs": 2, "learning-rate": 0.1})
    replies = grid.send_and_receive(strategy.configure_train(1, flower.record(base), config, grid), timeout=1)
    averaged = flower.arrays(strategy.aggregate_train(1, replies)[0], base)
    for name, array in averaged.items():
        assert array == pytest.approx(expected[name] / total, abs=1e-6)


def test_a_client_that_diverges_fails_alone():
    made = zero_bundle()
    base = tensors.load(made.files["weights"])
    runtime = TrainingRuntime(made.files["training"], made.manifest.training)
    raw, y = agent_models.samples(30, seed=0)
    good = VirtualClient(made.transform.apply(raw), y)
    bad = VirtualClient(np.full_like(good.x, 1e38), y)
    grid = VirtualGrid({"bad": bad, "good": good}, runtime, like=base, seed=0)
    strategy = make_strategy(RunConfig(), cohort=2, smallest=1)
    messages = strategy.configure_train(1, flower.record(base), flower.ConfigRecord({"learning-rate": 10.0}), grid)
    replies = grid.send_and_receive(messages, timeout=1)
    assert list(grid.failures) == ["bad"]
    assert sum(message.has_error() for message in replies) == 1


def test_a_bundle_that_cannot_train_is_refused():
    made = bundle.unpack(agent_bundles.make(training=None))
    with pytest.raises(SimulationError, match="no training part"):
        DeviceLoop(made, samples(20, 1), samples(20, 2))


@pytest.mark.slow
def test_the_command_prints_json_and_nothing_else(tmp_path):
    task = tmp_path / "task"
    task.mkdir()
    (task / "fieldfare.toml").write_text(
        '[task]\nname = "thirds"\nlabels = ["low", "middle", "high"]\ninput_shape = [4, 4, 1]\n'
    )
    (task / "task.py").write_text(
        "import numpy as np\n"
        "from tests.fakes import agent_models\n"
        "def build_model(keras): raise NotImplementedError\n"
        "def load_data():\n"
        "    x, y = agent_models.samples(200, seed=0)\n"
        "    part = np.repeat(['train', 'validation', 'test'], [120, 20, 60])\n"
        "    return {'x': x, 'y': y, 'device': np.full(200, 'd'), 'part': part}\n"
    )
    (tmp_path / "bundle.zip").write_bytes(agent_bundles.make())
    command = [sys.executable, "-m", "fieldfare", "simulate", str(task)]
    options = ["--bundle", str(tmp_path / "bundle.zip"), "--engine", "device", "--clients", "3", "--rounds", "2"]
    options += ["--alpha", "1.0", "--json"]
    shown = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    found = json.loads(shown.stdout)
    assert [score["round"] for score in found["rounds"]] == [0, 1, 2]
    assert sum(found["client_samples"]) == 120
    for option, value, sentence in (
        ("--clients", "999", "120 samples are not enough for 999 clients"),
        ("--clients", "0", "0 clients: there must be at least one"),
        ("--fraction", "2", "fraction = 2.0 is out of range"),
        ("--alpha", "-1", "alpha = -1.0: the concentration must be"),
    ):
        failed = subprocess.run([*command, *options[:4], option, value], capture_output=True, text=True, check=False)
        assert failed.returncode == 1
        assert f"fieldfare: {sentence}" in failed.stderr
        assert "Traceback" not in failed.stderr


def test_on_a_terminal_the_client_that_is_done_is_shown_and_gives_way_to_the_round(capsys):
    live = cli._Live(shown=True)
    live.client("train", 3)
    live.score(RoundScore(1, 3, 0.5, 1.0))
    shown = capsys.readouterr()
    assert "train, client 3 done" in shown.err
    assert shown.err.endswith("\r\x1b[K")
    assert shown.out == "round 1   accuracy 0.5000  loss 1.0000  (3 clients)\n"


def test_without_a_terminal_there_is_a_line_for_each_round_and_nothing_else(capsys):
    live = cli._Live(shown=False)
    live.client("train", 3)
    live.score(RoundScore(0, 3, 0.5, 1.0))
    shown = capsys.readouterr()
    assert (shown.err, shown.out.split()[0]) == ("", "base")
