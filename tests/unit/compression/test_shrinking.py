"""Stages that cut filters: what is left is smaller in weights and work, runs on the device, and still knows."""

import numpy as np
import pytest

from cloud.learning.backend import use_tensorflow
from compression import tuning
from compression.errors import RecipeError
from compression.stage import Workbench, Workpiece
from compression.stages.post_training import Float, Int8
from compression.stages.shrinking import FilterPrune, Width
from tests.fakes import digits_bench
from tests.fakes.digits_bench import accuracy, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench() -> Workbench:
    use_tensorflow()
    return digits_bench.trained()


def test_half_of_the_filters_can_go_and_the_device_runs_what_is_left(bench: Workbench) -> None:
    full, small = run(bench, Float()), run(bench, FilterPrune(keep=0.5, epochs=10), Int8())
    notes = small.records[0].notes
    assert notes["filters"] == {"edges": [16, 8], "strokes": [32, 16], "shape": [64, 32], "logits": [10, 10]}
    assert notes["left"] == ["logits"]
    assert notes["weights"] == [13706, 80 + 1168 + 64 * 32 + 32 + 330]
    assert notes["macs"] == [64 * 144 + 16 * 4608 + 128 * 64 + 640, 64 * 72 + 16 * 1152 + 64 * 32 + 320]
    assert len(small.artifact or b"") < 0.5 * len(full.artifact or b"")
    assert accuracy(bench, small.artifact) > accuracy(bench, full.artifact) - 0.05


@pytest.mark.parametrize("by", ["l1", "l2", "scale"])
def test_the_weakest_filters_go_first_whatever_says_so(bench: Workbench, by: str) -> None:
    model = tuning.tf_keras_model(Workpiece(), bench)
    kernel, bias = model.get_layer("strokes").get_weights()
    weak = [3, 7, 20]
    kernel[..., weak], bias[weak] = 0, 0
    model.get_layer("strokes").set_weights([kernel, bias])
    want = model(bench.validation.x[:20], training=False).numpy()
    stage = FilterPrune(keep=1.0, layers={"strokes": 29 / 32}, by=by, epochs=0)  # type: ignore[arg-type]
    made, notes = stage.run(Workpiece(model), bench)
    assert notes["filters"]["strokes"] == [32, 29]
    np.testing.assert_allclose(made(bench.validation.x[:20], training=False).numpy(), want, rtol=1e-4, atol=1e-5)


def test_the_scale_of_batch_normalization_can_be_the_judge(bench: Workbench) -> None:
    import tf_keras

    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            tf_keras.Input((8, 8, 1)),
            layers.Conv2D(6, 3, name="edges"),
            layers.BatchNormalization(name="scaled"),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    gamma, *others = model.get_layer("scaled").get_weights()
    gamma[:] = [1, 0.1, -2, 0.2, 0.3, 3]
    model.get_layer("scaled").set_weights([gamma, *others])
    made, _ = FilterPrune(keep=0.5, by="scale", epochs=0).run(Workpiece(model), bench)
    assert made.get_layer("scaled").get_weights()[0].tolist() == [1, -2, 3]


def test_the_model_that_came_in_is_not_changed(bench: Workbench) -> None:
    model = tuning.tf_keras_model(Workpiece(), bench)
    before = model.get_weights()
    FilterPrune(keep=0.5, epochs=1).run(Workpiece(model), bench)
    for array, same in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(array, same)


def test_the_same_recipe_data_and_seed_give_the_same_bytes(bench: Workbench) -> None:
    for stage in (FilterPrune(keep=0.4, epochs=1), Width(multiplier=0.4, epochs=1)):
        assert run(bench, stage, Float()).artifact == run(bench, stage, Float()).artifact


@pytest.mark.parametrize("start", ["scratch", "kept"])
def test_a_narrower_model_learns_from_scratch_or_from_what_was_kept(bench: Workbench, start: str) -> None:
    made = run(bench, Width(multiplier=0.5, start=start, epochs=20, learning_rate=3e-3), Float())  # type: ignore[arg-type]
    assert made.records[0].notes["filters"]["strokes"] == [32, 16]
    assert accuracy(bench, made.artifact) > 0.8


def test_a_layer_that_is_not_there_is_refused_with_one_that_is(bench: Workbench) -> None:
    with pytest.raises(RecipeError, match=r"filter-prune.layers: no layer 'stroke' with filters; there is strokes"):
        run(bench, FilterPrune(layers={"stroke": 0.5}, epochs=0), Float())
