"""Students: they learn what the teacher knows, from its logits, from classes, and from samples without one."""

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cloud.errors import TaskError
from cloud.learning.backend import use_tensorflow
from cloud.training import job as train_job
from compression import job as compress_job
from compression import recipe, source, tuning
from compression.errors import RecipeError
from compression.stage import Workbench
from compression.stages.distillation import Distill
from compression.stages.post_training import Float
from compression.stages.shrinking import FilterPrune
from tests.fakes import digits_bench
from tests.fakes.digits_bench import accuracy, run
from tests.fakes.registry_client import RegistryClient, context

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench() -> Workbench:
    use_tensorflow()
    return digits_bench.trained()


def test_a_student_without_a_single_class_learns_from_the_teacher(bench: Workbench) -> None:
    nobody = dataclasses.replace(bench, train=dataclasses.replace(bench.train, y=np.full(len(bench.train.y), -1)))
    made = run(nobody, Distill(width=0.5, alpha=0), Float())
    notes = made.records[0].notes
    assert notes["labelled"] == 0
    assert notes["weights"] == [13706, 3658]
    assert notes["agreement"] > 0.9
    assert accuracy(bench, made.artifact) > 0.85


def test_samples_without_a_class_are_learned_from(bench: Workbench) -> None:
    few = dataclasses.replace(bench.train, x=bench.train.x[:30], y=bench.train.y[:30])
    steps = 20 * -(-len(bench.train.x) // tuning.BATCH)  # an epoch of 30 samples is one of them
    without = run(dataclasses.replace(bench, train=few), Distill(width=0.5, epochs=steps), Float())
    more = dataclasses.replace(bench, train=few, unlabelled=bench.train.x[30:])
    taught = run(more, Distill(width=0.5, epochs=20), Float())
    assert taught.records[0].notes["samples"] == len(bench.train.x)
    assert taught.records[0].notes["steps"] == without.records[0].notes["steps"]
    assert accuracy(bench, taught.artifact) > accuracy(bench, without.artifact) + 0.05


def test_a_control_arm_takes_the_same_steps_and_looks_at_no_teacher(bench: Workbench) -> None:
    taught, alone = (run(bench, Distill(width=0.5, alpha=alpha, labels=0.1, epochs=3), Float()) for alpha in (0.1, 1.0))
    assert alone.records[0].notes["steps"] == taught.records[0].notes["steps"]
    assert alone.records[0].notes["labelled"] == taught.records[0].notes["labelled"] == round(0.1 * len(bench.train.y))
    liar = dataclasses.replace(bench, weights={name: -array for name, array in bench.weights.items()})
    # the student's shape comes from the teacher, its weights and batches from the seed
    assert run(liar, Distill(width=0.5, alpha=1, labels=0.1, epochs=3), Float()).artifact == alone.artifact


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_the_loss_is_the_divergence_times_the_square_of_the_temperature(temperature: float) -> None:
    """One step of the loop against the gradient by hand, on logits that are the weights themselves."""
    use_tensorflow()
    import tf_keras

    student = tf_keras.Sequential([tf_keras.Input((3,)), tf_keras.layers.Dense(3, use_bias=False)])
    kernel = np.array([[1, 2, 0.5], [0, -1, 3], [2, 2, 1]], np.float32)
    student.set_weights([kernel])
    seen: list[np.ndarray] = []

    class Watching(tf_keras.optimizers.Adam):  # type: ignore[misc]  # tf_keras has no types
        def apply_gradients(self, pairs: Any, **given: Any) -> Any:
            import tensorflow as tf

            pairs = list(pairs)
            tf.numpy_function(lambda gradient: seen.append(gradient) or np.float32(0), [pairs[0][0]], tf.float32)
            return super().apply_gradients(pairs, **given)

    known = tf_keras.optimizers.Adam
    tf_keras.optimizers.Adam = Watching
    logits, y = np.array([[3, 0, 1]], np.float32), np.array([2])
    x = np.eye(3, dtype=np.float32)[:1]
    try:
        for alpha in (0.0, 0.3, 1.0):
            student.set_weights([kernel])
            given = {"temperature": temperature, "alpha": alpha, "steps": 1, "learning_rate": 0.1, "seed": 0}
            tuning.imitate(student, (x, logits), (x, y), **given, batch=1)  # type: ignore[arg-type]
    finally:
        tf_keras.optimizers.Adam = known

    def softmax(z: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(z) / np.exp(z).sum())

    taught = temperature * (softmax(kernel[0] / temperature) - softmax(logits[0] / temperature))
    hard = softmax(kernel[0]) - np.eye(3)[2]
    for gradient, alpha in zip(seen, (0.0, 0.3, 1.0), strict=True):
        np.testing.assert_allclose(gradient[0], alpha * hard + (1 - alpha) * taught, rtol=1e-4, atol=1e-6)


def test_a_pruned_model_can_learn_from_what_it_was(bench: Workbench) -> None:
    made = run(bench, FilterPrune(keep=0.4, epochs=0), Distill(epochs=10), Float())
    assert made.records[1].notes["weights"][0] == 13706
    assert made.records[1].notes["weights"][1] == made.records[0].notes["weights"][1]
    assert accuracy(bench, made.artifact) > 0.85


def test_the_same_recipe_data_and_seed_give_the_same_bytes(bench: Workbench) -> None:
    stages = Distill(width=0.4, epochs=1), Float()
    assert run(bench, *stages).artifact == run(bench, *stages).artifact


def test_what_makes_no_sense_is_refused(bench: Workbench) -> None:
    with pytest.raises(RecipeError, match="would teach itself"):
        run(bench, Distill(teacher="workpiece"), Float())
    with pytest.raises(TaskError, match="no function 'build_student'; there is build_model"):
        run(bench, Distill(student="build_student"), Float())
    with pytest.raises(RecipeError, match=r"Expected `str` matching regex.*stages\[0\].student"):
        recipe.parse('name = "m"\n[[stages]]\nstage = "distill"\nstudent = "load_data"\n', "r.toml")
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"stage": "distill", "alpha": 1.5}, Distill)


TOML = """
[task]
name = "rings"
labels = ["inner", "outer"]
input_shape = [2]
[transform]
features = [{ op = "column", name = "first", index = 0 }]
[training]
epochs = 60
learning_rate = 0.01
"""
MODULE = """
import numpy as np
def build_model(keras):
    layers = keras.layers
    return keras.Sequential([keras.Input((2,)), layers.Dense(32, activation="relu"), layers.Dense(2)])
def build_student(keras):
    layers = keras.layers
    return keras.Sequential([keras.Input((2,)), layers.Dense(6, activation="relu", name="few"), layers.Dense(2)])
def load_data():
    rng = np.random.default_rng(0)
    part = np.repeat(["train", "validation", "test", "unlabelled"], [200, 100, 100, 600])
    x = rng.normal(size=(1000, 2)).astype(np.float32)
    y = (np.linalg.norm(x, axis=1) > 1.2).astype(np.int64)
    return {"x": x, "y": np.where(part == "unlabelled", -1, y), "device": np.full(1000, "lab"), "part": part}
"""


def test_samples_without_a_class_come_from_the_task_through_the_registry_to_the_student(tmp_path: Path) -> None:
    (tmp_path / "fieldfare.toml").write_text(TOML)
    (tmp_path / "task.py").write_text(MODULE)
    client = RegistryClient(tmp_path)
    try:
        train_job.run(context(client, tmp_path, "train-1", {"task": str(tmp_path), "model": "rings"}, []))
        origin = source.load(client, "rings", 1)
        assert origin.unlabelled is not None
        assert origin.unlabelled.shape == (600, 2)
        assert len(origin.train.x) == 200
        stages = [{"stage": "distill", "student": "build_student", "learning_rate": 0.03}, {"stage": "float"}]
        spec = {"model": "rings", "version": 1, "recipes": [{"name": "student", "stages": stages}]}
        made = compress_job.run(context(client, tmp_path, "compress-1", spec, []))
        variants = {variant.name: variant for variant in client.get_version("rings", 1).variants}
        assert set(variants) == set(made["variants"]) == {"float", "student"}
        assert variants["student"].report["validation_accuracy"] > 0.8
        assert variants["student"].report["records"][0]["notes"]["samples"] == 800
        assert variants["student"].report["bytes"] < variants["float"].report["bytes"]
    finally:
        client.close()
