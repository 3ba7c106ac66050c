"""Dense layers as two thin ones: the same function at full rank, fewer weights and less work below it."""

from typing import Any

import numpy as np
import pytest

from cloud.learning import metrics
from cloud.learning.backend import use_tensorflow
from compression import recipe, tuning
from compression.errors import RecipeError, UnsupportedLayerError
from compression.stage import Workbench, Workpiece
from compression.stages.low_rank import LowRank, factored
from compression.stages.post_training import Float
from edge_agent.runtime import Runtime
from tests.fakes import digits_bench

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench() -> Workbench:
    use_tensorflow()
    return digits_bench.trained()


@pytest.fixture
def model(bench: Workbench) -> Any:
    return tuning.tf_keras_model(Workpiece(), bench)


def branched() -> Any:
    import tf_keras

    layers = tf_keras.layers
    x = tf_keras.Input((12, 6))
    one = layers.Dense(9, activation="relu", name="steps")(x)
    two = layers.Dense(9, activation="tanh", name="other", use_bias=False)(x)
    flat = layers.Flatten()(layers.Add()([one, two]))
    return tf_keras.Model(x, layers.Dense(4, name="logits")(layers.BatchNormalization()(flat)))


def test_full_rank_is_the_same_function(bench: Workbench, model: Any) -> None:
    x = bench.validation.x[:50]
    same = factored(model, {"shape": 64, "logits": 10})
    np.testing.assert_allclose(same(x).numpy(), model(x).numpy(), rtol=1e-4, atol=1e-4)


def test_full_rank_is_the_same_function_in_a_graph_with_branches() -> None:
    model = branched()
    x = np.random.default_rng(0).normal(size=(7, 12, 6)).astype(np.float32)
    same = factored(model, {"steps": 6, "other": 6, "logits": 4})
    np.testing.assert_allclose(same(x).numpy(), model(x).numpy(), rtol=1e-4, atol=1e-5)
    assert [layer.name for layer in same.layers if layer.name.startswith("other")] == ["other_low", "other"]


def test_a_kernel_of_low_rank_loses_weights_and_nothing_else(bench: Workbench, model: Any) -> None:
    kernel, bias = model.get_layer("shape").get_weights()
    rng = np.random.default_rng(0)
    thin = rng.normal(size=(128, 5)) @ rng.normal(size=(5, 64))
    model.get_layer("shape").set_weights([thin.astype(np.float32), bias])
    made, notes = LowRank(energy=1 - 1e-9, epochs=0).run(Workpiece(model), bench)
    assert notes["ranks"] == {"shape": 5}
    assert notes["left"] == ["logits"]
    saved = kernel.size - 5 * (128 + 64)
    assert notes["weights"] == [13706, 13706 - saved]
    assert notes["macs"][0] - notes["macs"][1] == saved
    x = bench.validation.x[:50]
    np.testing.assert_allclose(made(x).numpy(), model(x).numpy(), rtol=1e-3, atol=1e-3)


def test_a_factored_model_runs_on_the_device_and_still_knows(bench: Workbench, model: Any) -> None:
    stages = [LowRank(rank=0.2, layers=["shape"], epochs=5), Float()]
    content = recipe.make(recipe.Recipe(name="mine", stages=stages), Workpiece(model), bench).artifact
    full = recipe.make(recipe.Recipe(name="mine", stages=[Float()]), Workpiece(model), bench).artifact
    assert content is not None
    assert full is not None
    assert len(content) < 0.8 * len(full)
    y = bench.validation.y
    kept, known = (metrics.accuracy(Runtime(each).logits(bench.validation.x), y) for each in (content, full))
    assert kept > known - 0.05


def test_a_layer_can_be_factored_again(bench: Workbench, model: Any) -> None:
    once, _ = LowRank(rank=0.5, layers=["shape"], epochs=0).run(Workpiece(model), bench)
    twice, notes = LowRank(rank=0.25, layers=["shape"], epochs=0).run(Workpiece(once), bench)
    assert notes["ranks"] == {"shape": 8}
    assert [layer.name for layer in twice.layers][-4:] == ["shape_low", "shape_low_low", "shape", "logits"]


@pytest.mark.timeout(60)
def test_a_layer_that_is_used_twice_stays_whole() -> None:
    import tf_keras

    x = tf_keras.Input((12, 16))
    twice = tf_keras.layers.Dense(16, name="twice")
    out = tf_keras.layers.Dense(20, name="logits")(tf_keras.layers.Flatten()(twice(twice(x))))
    stage = LowRank(rank=0.1, epochs=0)
    ranks, left = stage._ranks(tf_keras.Model(x, out))
    assert (ranks, left) == ({"logits": 2}, ["twice"])
    named = LowRank(rank=0.1, epochs=0, layers=["twice"])
    with pytest.raises(UnsupportedLayerError, match="twice: is used more than once"):
        named._ranks(tf_keras.Model(x, out))


def test_what_makes_no_sense_is_refused_by_name(bench: Workbench, model: Any) -> None:
    with pytest.raises(RecipeError, match=r"low-rank.layers: no dense layer 'shap'; there is shape"):
        LowRank(layers=["shap"]).run(Workpiece(model), bench)
    model.get_layer("shape").set_weights([np.full((128, 64), np.nan), np.zeros(64)])
    with pytest.raises(UnsupportedLayerError, match="shape: its kernel holds NaN"):
        LowRank().run(Workpiece(model), bench)
