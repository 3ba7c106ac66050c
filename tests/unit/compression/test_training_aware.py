"""Stages of tensorflow-model-optimization: what they reach, what they keep, what they leave alone, what they refuse."""

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud import features
from cloud.learning import metrics, weights
from cloud.learning.task import Task, load_task
from compression import recipe, tuning
from compression.errors import StageError, UnsupportedLayerError
from compression.stage import Samples, Workbench, Workpiece
from contract.transform import Transform
from edge_agent.runtime import Runtime

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]


def make_bench() -> Workbench:
    task = load_task("digits")
    data = task.load_data()
    parts = {part: data["part"] == part for part in ("train", "validation")}
    executor = Transform(features.fit(task, data["x"][parts["train"]]))
    samples = {part: Samples(executor.apply(data["x"][rows]), data["y"][rows]) for part, rows in parts.items()}
    arrays = weights.get(weights.build(task, seed=3))
    return Workbench(task=task, weights=arrays, train=samples["train"], validation=samples["validation"])


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return make_bench()


def run(bench: Workbench, *stages: dict[str, Any]) -> Workpiece:
    piece = Workpiece(_keras(bench))
    for stage in recipe.from_fields({"name": "x", "stages": [*stages, {"stage": "int8"}]}, "test").stages[:-1]:
        piece = recipe.run_stage(stage, piece, bench)
    return piece


def _keras(bench: Workbench) -> Any:
    model = weights.build(bench.task, seed=3)
    weights.put(model, bench.weights)
    return model


def kernels(model: Any) -> list[np.ndarray]:
    return [np.asarray(w) for layer in model.layers for w in layer.trainable_weights if "kernel" in w.name]


@pytest.mark.parametrize("schedule", ["polynomial", "constant"])
def test_pruning_reaches_its_sparsity_in_every_kernel(bench: Workbench, schedule: str) -> None:
    made = run(bench, {"stage": "prune", "sparsity": 0.75, "schedule": schedule, "epochs": 2})
    assert [round(float((kernel == 0).mean()), 2) for kernel in kernels(made.model)] == [0.75] * 4
    assert made.records[0].notes == {"sparsity": pytest.approx(0.75, abs=0.01)}


def test_two_of_four_neighbours_are_zero_and_the_layer_that_does_not_fit_is_named(bench: Workbench) -> None:
    made = run(bench, {"stage": "prune", "pattern": "2:4", "epochs": 1})
    assert made.records[0].notes["left dense"] == ["edges"]
    edges, *others = kernels(made.model)
    assert not (edges == 0).any()
    for kernel in others:
        rows = np.moveaxis(kernel, -2, -1).reshape(-1, 4)  # four neighbours along the inputs that are added
        assert ((rows != 0).sum(axis=1) <= 2).all()


def test_blocks_are_zero_as_a_whole_in_dense_layers(bench: Workbench) -> None:
    made = run(bench, {"stage": "prune", "pattern": "block", "block": [2, 2], "sparsity": 0.5, "epochs": 1})
    assert made.records[0].notes["left dense"] == ["edges", "strokes"]
    zeros = kernels(made.model)[2] == 0
    blocks = zeros.reshape(zeros.shape[0] // 2, 2, zeros.shape[1] // 2, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
    assert set(blocks.sum(axis=1)) == {0, 4}


def test_clusters_share_values_and_keep_zeros(bench: Workbench) -> None:
    made = run(
        bench, {"stage": "prune", "sparsity": 0.5, "epochs": 1}, {"stage": "cluster", "clusters": 8, "epochs": 1}
    )
    assert all(len(np.unique(kernel)) <= 8 for kernel in kernels(made.model))
    assert made.records[1].notes["values"] <= 8
    assert tuning.sparsity(made.model) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("before", "keeps"),
    [
        ((), "nothing"),
        (("prune",), "zeros"),
        (("cluster",), "shared values"),
        (("prune", "cluster"), "zeros and shared values"),
    ],
)
def test_training_for_int8_keeps_what_is_behind_it_down_to_the_artifact(
    bench: Workbench, before: tuple[str, ...], keeps: str
) -> None:
    stages = [{"stage": stage, "epochs": 1} for stage in (*before, "qat")]
    given = recipe.from_fields({"name": "x", "stages": [*stages, {"stage": "int8"}]}, "test")
    made = recipe.make(given, Workpiece(_keras(bench)), bench)
    assert made.records[len(before)].notes == {"keeps": keeps}
    for kernel in _integer_kernels(made.artifact or b""):
        zero = float((kernel == 0).mean())
        assert zero >= 0.58 if "prune" in before else zero < 0.3
        if "cluster" in before:
            assert max(len(np.unique(channel)) for channel in kernel) <= 17  # each has a scale of its own
    assert Runtime(made.artifact or b"").input_type == np.int8


def _integer_kernels(content: bytes) -> list[np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    found = []
    for detail in interpreter.get_tensor_details():
        if detail["dtype"] == np.int8 and len(detail["shape"]) >= 2 and np.prod(detail["shape"]) >= 256:
            try:
                value = interpreter.get_tensor(detail["index"])
            except ValueError:  # an activation
                continue
            if value.shape[0] != 1:
                found.append(value)
    assert found
    return found


def test_preserving_can_be_turned_off(bench: Workbench) -> None:
    made = run(
        bench, {"stage": "prune", "sparsity": 0.9, "epochs": 1}, {"stage": "qat", "preserve": "none", "epochs": 1}
    )
    assert made.records[1].notes == {"keeps": "nothing"}
    for kernel in (each for each in made.model.get_weights() if each.ndim >= 2 and each.size >= 256):
        assert float((kernel == 0).mean()) < 0.8  # training moved what was zero, of nine tenths


def test_int8_after_training_for_it_is_as_right_as_that_model(bench: Workbench) -> None:
    given = [{"stage": "fine-tune", "epochs": 12, "learning_rate": 0.003}, {"stage": "qat", "epochs": 2}]
    aware = run(bench, *given)
    whole = recipe.from_fields({"name": "x", "stages": [*given, {"stage": "int8"}]}, "test")
    artifact = recipe.make(whole, Workpiece(_keras(bench)), bench).artifact
    x, y = bench.validation.x, bench.validation.y
    simulated = metrics.accuracy(np.asarray(aware.model(x, training=False)), y)
    assert simulated > 0.85
    assert metrics.accuracy(Runtime(artifact or b"").logits(x), y) == pytest.approx(simulated, abs=0.02)


def test_no_stage_changes_the_model_that_it_is_given(bench: Workbench) -> None:
    first = run(bench, {"stage": "fine-tune", "epochs": 1})
    before = [np.array(value) for value in first.model.get_weights()]
    for stage in ("prune", "cluster", "qat", "fine-tune"):
        [given] = recipe.from_fields(
            {"name": "x", "stages": [{"stage": stage, "epochs": 1}, {"stage": "int8"}]}, "t"
        ).stages[:1]
        recipe.run_stage(given, first, bench)
    for old, new in zip(before, first.model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_layer_that_qat_does_not_know_is_refused_by_name(bench: Workbench) -> None:
    def build(keras: Any) -> Any:
        layers = keras.layers
        flat = [layers.Reshape((64, 1)), layers.Conv1D(4, 3, name="waves"), layers.Flatten(), layers.Dense(10)]
        return keras.Sequential([keras.Input((8, 8, 1)), *flat])

    odd = _with_model(bench, build)
    with pytest.raises(
        UnsupportedLayerError, match=r"layer 'waves' \(Conv1D\) has no integer form in tfmot; leave qat"
    ):
        run(odd, {"stage": "qat"})


def _waves(keras: Any) -> Any:
    layers = keras.layers
    steps = [layers.Conv1D(16, 3, activation="relu", name="waves"), layers.Flatten(), layers.Dense(10)]
    return keras.Sequential([keras.Input((8, 8)), *steps])


def _dense(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential([keras.Input((64,)), layers.Dense(32, activation="relu"), layers.Dense(10)])


def _small(bench: Workbench, build: Any, shape: tuple[int, ...]) -> Workbench:
    """Few samples in the shape that the model takes."""
    train = Samples(bench.train.x[:256].reshape(-1, *shape), bench.train.y[:256])
    return dataclasses.replace(_with_model(bench, build), train=train)


@pytest.mark.parametrize("name", ["tiny", "balanced", "accurate", "sensor-mlp"])
@pytest.mark.parametrize(("build", "shape"), [(_waves, (8, 8)), (_dense, (64,))], ids=["waves", "dense"])
def test_ready_recipes_fit_networks_of_sensors(bench: Workbench, name: str, build: Any, shape: tuple[int, ...]) -> None:
    small = _small(bench, build, shape)
    made = recipe.make(recipe.load(name), Workpiece(_keras(small)), small)
    notes = {record.stage: record.notes for record in made.records}
    if build is _waves and "qat" in notes:
        assert notes["qat"] == {"skipped": "layer 'waves' (Conv1D) has no integer form in tfmot"}
    elif "qat" in notes:
        assert "skipped" not in notes["qat"]
    ran = Runtime(made.artifact or b"")
    assert ran.input_type == np.int8
    assert ran.logits(small.train.x[:4]).shape == (4, 10)


def test_what_ran_before_in_the_process_changes_no_byte(bench: Workbench) -> None:
    import tf_keras

    small = _small(bench, _dense, (64,))
    stages = [{"stage": stage, "epochs": 1} for stage in ("prune", "cluster", "qat")]
    given = recipe.from_fields({"name": "x", "stages": [*stages, {"stage": "int8"}]}, "test")
    alone = recipe.make(given, Workpiece(_keras(small)), small).artifact

    piece = Workpiece(_keras(small))
    for stage in given.stages:  # between them comes what a search does: other models, another seed
        tf_keras.utils.set_random_seed(99)
        tf_keras.Sequential([tf_keras.layers.Dense(3), tf_keras.layers.Dense(4)]).build((1, 5))
        piece = recipe.run_stage(stage, piece, small)
    assert hashlib.sha256(piece.artifact or b"").digest() == hashlib.sha256(alone or b"").digest()


def test_a_model_without_kernels_that_fit_is_refused(bench: Workbench) -> None:
    def build(keras: Any) -> Any:
        layers = keras.layers
        return keras.Sequential(
            [keras.Input((8, 8, 1)), layers.Conv2D(10, 3, name="only"), layers.GlobalAveragePooling2D()]
        )

    with pytest.raises(UnsupportedLayerError, match="no layer takes the pattern block: only"):
        run(_with_model(bench, build), {"stage": "prune", "pattern": "block"})


def test_training_that_diverges_says_so(bench: Workbench) -> None:
    broken = dataclasses.replace(bench, train=Samples(bench.train.x * np.float32(1e38), bench.train.y))
    with pytest.raises(StageError, match=r"fine-tuning: the loss became (nan|inf); lower learning_rate"):
        run(broken, {"stage": "fine-tune", "epochs": 1})


def _with_model(bench: Workbench, build: Any) -> Workbench:
    task: Task = dataclasses.replace(bench.task, build_model=build)
    return dataclasses.replace(bench, task=task, weights=weights.get(weights.build(task, seed=0)))


_AGAIN = """
import hashlib
import sys
sys.path.insert(0, 'tests/unit/compression')
from test_training_aware import *
from test_training_aware import _keras
from cloud.learning.backend import use_tensorflow
use_tensorflow()
made = make_bench()
stages = [{"stage": "prune", "epochs": 1}, {"stage": "cluster", "epochs": 1}, {"stage": "qat", "epochs": 1}]
whole = recipe.from_fields({"name": "x", "stages": [*stages, {"stage": "int8"}]}, "test")
print(hashlib.sha256(recipe.make(whole, Workpiece(_keras(made)), made).artifact).hexdigest())
"""


def test_the_same_recipe_data_and_seed_give_the_same_bytes_in_another_process() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", _AGAIN], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout.split()[-1]
        for _ in range(2)
    }
    assert len(found) == 1
    assert len(found.pop()) == len(hashlib.sha256().hexdigest())


def test_a_layer_with_fewer_weights_than_clusters_is_named_and_left_as_it_is_with_its_zeros(bench: Workbench) -> None:
    pruned = run(bench, {"stage": "prune", "sparsity": 0.5, "epochs": 1})
    [stage, _int8] = recipe.from_fields(
        {"name": "x", "stages": [{"stage": "cluster", "clusters": 200, "epochs": 1}, {"stage": "int8"}]}, "test"
    ).stages
    made = recipe.run_stage(stage, pruned, bench)
    assert made.records[-1].notes["left alone"] == ["edges"]
    np.testing.assert_array_equal(kernels(made.model)[0], kernels(pruned.model)[0])
    assert tuning.sparsity(made.model) == pytest.approx(tuning.sparsity(pruned.model), abs=0.01)
    assert made.model.get_layer("edges").trainable


def test_what_a_library_raises_of_its_own_is_one_line_with_the_stage(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def burst(*_args: object, **_named: object) -> None:
        raise ArithmeticError("deep inside\nmore lines")

    monkeypatch.setattr(tuning, "fit", burst)
    with pytest.raises(StageError, match=r"^stage fine-tune: ArithmeticError: deep inside$"):
        run(bench, {"stage": "fine-tune"})
