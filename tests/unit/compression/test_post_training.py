"""Stages without training: what an artifact becomes, that it answers like the model, and what is refused by name."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from cloud.learning import weights
from cloud.learning.backend import use_tensorflow
from compression import recipe
from compression.errors import ConversionError, RecipeError, StageError, UnsupportedLayerError
from compression.stage import Samples, Workbench, Workpiece
from edge_agent.runtime import Runtime
from tests.fakes import digits_bench

pytestmark = pytest.mark.slow
FOUR_BITS = {"stage": "mixed", "rules": [{"operation": "FULLY_CONNECTED", "bits": 4, "granularity": "block32"}]}


@pytest.fixture(scope="module")
def bench() -> Workbench:
    use_tensorflow()
    return digits_bench.trained()


def make(bench: Workbench, *stages: dict[str, Any], model: Any = None) -> bytes:
    if model is None:
        model = digits_bench.keras_model(bench)
    whole = recipe.from_fields({"name": "x", "stages": list(stages)}, "x.toml")
    return recipe.make(whole, Workpiece(model), bench).artifact or b""


@pytest.mark.parametrize(
    ("stages", "share", "io"),
    [
        ([{"stage": "float16"}], 0.62, np.float32),
        ([{"stage": "dynamic"}], 0.42, np.float32),
        ([{"stage": "int8"}], 0.42, np.int8),
        ([{"stage": "int8", "io": "float", "samples": 50}], 0.42, np.float32),
        ([{"stage": "int16x8"}], 0.46, np.float32),
        ([{"stage": "float"}, {"stage": "weight-only"}], 0.42, np.float32),
        ([{"stage": "float"}, {"stage": "weight-only", "bits": 4}], 0.32, np.float32),
        ([{"stage": "float"}, {"stage": "mixed"}], 0.36, np.float32),
        ([{"stage": "float"}, {"stage": "mixed", "rules": [{"compute": "static"}]}], 0.46, np.int8),
        ([{"stage": "float"}, FOUR_BITS], 0.62, np.float32),
        ([{"stage": "float"}, {"stage": "mixed", "rules": [{"layers": "strokes", "bits": 4}]}], 0.95, np.float32),
        ([{"stage": "float"}, {"stage": "edge-dynamic"}], 0.42, np.float32),
        ([{"stage": "float"}, {"stage": "edge-dynamic", "bits": 4}], 0.36, np.float32),
        ([{"stage": "float"}, {"stage": "edge-static"}], 0.46, np.int8),
        ([{"stage": "float"}, {"stage": "edge-static", "bits": 4, "io": "float"}], 0.4, np.float32),
        ([{"stage": "float"}, {"stage": "edge-static", "activation_bits": 16, "samples": 50}], 0.46, np.int16),
    ],
)
def test_an_artifact_is_smaller_and_answers_like_the_model(
    bench: Workbench, stages: list[dict[str, Any]], share: float, io: type
) -> None:
    x = bench.validation.x
    whole, made = make(bench, {"stage": "float"}), make(bench, *stages)
    assert len(made) < share * len(whole)
    runtime = Runtime(made)
    assert runtime.input_type == runtime.output_type == io
    agreed = (runtime.logits(x).argmax(axis=1) == Runtime(whole).logits(x).argmax(axis=1)).mean()
    assert agreed > 0.95
    assert make(bench, *stages) == made  # the same again


def test_the_record_holds_the_quantizers_own_recipe(bench: Workbench) -> None:
    piece = Workpiece(artifact=make(bench, {"stage": "float"}))
    [stage] = recipe.from_fields({"name": "x", "stages": [{"stage": "float"}, FOUR_BITS]}, "x.toml").stages[1:]
    [record] = recipe.run_stage(stage, piece, bench).records
    assert record.notes["recipe"][0]["op_config"]["weight_tensor_config"]["num_bits"] == 4


def other(bench: Workbench, **train: Any) -> Workbench:
    return dataclasses.replace(bench, train=dataclasses.replace(bench.train, **train))


def spoiled(x: np.ndarray) -> np.ndarray:
    changed = x.copy()
    changed[0, 0, 0] = np.nan
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:0], "representative samples: there are none"),
        (lambda x: x.astype(np.float64), r"representative samples: float64\(8, 8, 1\), the model takes float32"),
        (lambda x: x[:, :4], r"representative samples: float32\(4, 8, 1\), the model takes float32\(8, 8, 1\)"),
        (spoiled, "representative samples: sample 0 has values that are not finite"),
    ],
)
def test_representative_samples_that_make_no_sense_are_refused(bench: Workbench, change: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make(other(bench, x=change(bench.train.x)), {"stage": "int8"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: np.where(np.arange(len(y)) == 5, 10, y), "sample 5 is of class 10, the model has 10"),
        (lambda y: y[:-1], "647 samples and 646 classes; they must be as many"),
    ],
)
def test_mislabelled_training_samples_are_refused(bench: Workbench, change: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make(other(bench, y=change(bench.train.y)), {"stage": "fine-tune", "epochs": 1}, {"stage": "int8"})


def test_weights_that_are_no_numbers_are_refused_by_layer(bench: Workbench) -> None:
    model = weights.build(bench.task, seed=1)
    layer = model.get_layer("strokes")
    kernel, bias = layer.get_weights()
    layer.set_weights([kernel * np.float32(np.inf), bias])
    with pytest.raises(StageError, match="layer 'strokes': kernel has values that are not finite"):
        make(bench, {"stage": "float"}, model=model)


def _model(*layers: Any, shape: tuple[int | None, ...] = (8, 8, 1)) -> Any:
    import keras

    return keras.Sequential([keras.Input(shape), *layers, keras.layers.Flatten(), keras.layers.Dense(10)])


def test_an_input_without_a_fixed_shape_is_refused(bench: Workbench) -> None:
    import keras

    inputs = keras.Input((None, 8, 1))
    model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(inputs)))
    with pytest.raises(UnsupportedLayerError, match=r"shape \(None, 8, 1\); a device needs a fixed one"):
        make(bench, {"stage": "float"}, model=model)


def test_an_operation_without_a_form_is_refused_by_name(bench: Workbench) -> None:
    import keras
    import tensorflow as tf

    class Odd(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return tf.math.igamma(tf.ones_like(x), x)

    with pytest.raises(ConversionError, match=r"float: tf.Igamma \(in \S*odd_layer\S*\) has no TFLite form"):
        make(bench, {"stage": "float"}, model=_model(Odd(name="odd_layer")))


def test_representative_samples_are_spread_over_all_of_them() -> None:
    samples = Samples(np.arange(100, dtype=np.float32), np.zeros(100, int))
    assert samples.spread(5).tolist() == [0, 24, 49, 74, 99]
    assert len(samples.spread(1000)) == len(samples.x)
