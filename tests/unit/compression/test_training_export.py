"""The training signature: same numbers as TensorFlow's own gradients, padding without effect, refusals by name."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cloud.learning.backend import use_tensorflow
from compression.errors import UnsupportedLayerError
from contract.training import names
from edge_agent import training

pytestmark = pytest.mark.slow

keras: Any = None  # with tf, L, weights and training_export: filled by the fixture, so that collection stays quick
tf: Any = None
L: Any = None
weights: Any = None
training_export: Any = None


@pytest.fixture(scope="module", autouse=True)
def _tensorflow() -> None:
    use_tensorflow()
    modules = globals()
    modules.update(keras=importlib.import_module("keras"), tf=importlib.import_module("tensorflow"))
    modules.update(L=modules["keras"].layers, weights=importlib.import_module("cloud.learning.weights"))
    modules.update(training_export=importlib.import_module("compression.training_export"))


def sequential(shape: tuple[int, ...], *layers: Any) -> Any:
    return keras.Sequential([keras.Input(shape), *layers])


MODELS: dict[str, Callable[[], Any]] = {
    "dense": lambda: sequential((20,), L.Dense(16, activation="relu"), L.Dense(6)),
    "pooled": lambda: sequential(
        (9, 9, 2),
        L.Conv2D(4, 3, padding="same", activation="relu"),
        L.MaxPool2D(),
        L.Conv2D(6, 3, activation="relu6"),
        L.AveragePooling2D(2),
        L.Flatten(),
        L.Dense(5),
    ),
    "padded pools": lambda: sequential(
        (10, 11, 1),
        L.Conv2D(3, 3, padding="same", activation="tanh"),
        L.MaxPool2D((3, 2), padding="same"),  # 10 rows padded by one on both sides
        L.MaxPool2D((2, 4), padding="same"),
        L.Flatten(),
        L.Dense(4),
    ),
    "strided": lambda: sequential(
        (11, 12, 1),
        L.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
        L.Conv2D(5, 1, strides=2),
        L.Conv2D(6, 2, dilation_rate=2, activation="tanh"),
        L.GlobalMaxPooling2D(),
        L.Dense(5),
    ),
    "separable": lambda: sequential(
        (10, 10, 3),
        L.DepthwiseConv2D(3, strides=2, padding="same"),
        L.SeparableConv2D(6, 3, activation="relu"),
        L.GlobalAveragePooling2D(),
        L.Dense(5),
    ),
    "normalized": lambda: sequential(
        (8, 8, 1),
        L.Conv2D(4, 3, use_bias=False),
        L.BatchNormalization(),
        L.ReLU(),
        L.Flatten(),
        L.LayerNormalization(),
        L.Dense(5, activation="silu"),
        L.Dense(4),
    ),
    "signal": lambda: sequential(
        (24, 3), L.Conv1D(8, 5, activation="relu"), L.MaxPool1D(2), L.GlobalAveragePooling1D(), L.Dense(4)
    ),
    "recurrent": lambda: sequential((6, 3), L.LSTM(5, unroll=True), L.Dense(4)),
}


def step_inputs(model: Any, spec: Any, rng: np.random.Generator, counted: int = 32) -> dict[str, np.ndarray]:
    arrays = list(weights.get(model).values())
    trained, kept = arrays[: len(spec.weights)], arrays[len(spec.weights) :]
    noise = {
        name: rng.normal(size=array.shape).astype(np.float32) / 10
        for letter in "mag"
        for name, array in zip(names(letter, len(trained)), trained, strict=True)
    }
    classes = model.output_shape[-1]
    return {
        **dict(zip(names("w", len(trained)), trained, strict=True)),
        **dict(zip(names("s", len(kept)), kept, strict=True)),
        **noise,
        "x": rng.normal(size=(32, *model.input_shape[1:])).astype(np.float32),
        "y": rng.integers(0, classes, 32).astype(np.int32),
        "mask": (np.arange(32) < counted).astype(np.float32),
        "lr": np.float32(0.1),
        "momentum": np.float32(0.9),
        "mu": np.float32(0.01),
    }


def traced(model: Any, spec: Any, *, builtin: bool) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    signature = training_export.train_signature(model, spec)
    function = tf.function(training_export._train(model, spec, builtin=builtin), input_signature=signature)
    concrete = function.get_concrete_function()
    return lambda inputs: {
        name: value.numpy() for name, value in concrete(*(tf.constant(inputs[s.name]) for s in signature)).items()
    }


def assert_close(got: dict[str, np.ndarray], want: dict[str, np.ndarray], tolerance: float) -> None:
    assert set(got) == set(want)
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("name", list(MODELS))
def test_builtin_gradients_are_those_of_tensorflow(name: str) -> None:
    keras.utils.set_random_seed(1)
    model = MODELS[name]()
    spec = training_export.training_spec(model)
    inputs = step_inputs(model, spec, np.random.default_rng(1))
    got = traced(model, spec, builtin=True)(inputs)
    # BatchNorm's masked moments are in both, so that the gradients alone are compared
    assert_close(got, traced(model, spec, builtin=False)(inputs), 2e-5)


@pytest.fixture(scope="module", params=["pooled", "padded pools", "normalized"])
def exported(request: pytest.FixtureRequest) -> tuple[Any, training.TrainingRuntime]:
    keras.utils.set_random_seed(2)
    model = MODELS[request.param]()
    content, spec = training_export.export(model)
    return model, training.TrainingRuntime(content, spec)


def test_litert_takes_the_step_that_tensorflow_takes(exported: tuple[Any, training.TrainingRuntime]) -> None:
    model, runtime = exported
    inputs = step_inputs(model, runtime.spec, np.random.default_rng(3), counted=20)
    assert_close(runtime.step(inputs), traced(model, runtime.spec, builtin=False)(inputs), 2e-5)


def test_the_step_is_the_formula_of_the_contract(exported: tuple[Any, training.TrainingRuntime]) -> None:
    model, runtime = exported
    inputs = step_inputs(model, runtime.spec, np.random.default_rng(4))
    output = runtime.step(inputs)
    still = runtime.step({**inputs, "mu": np.float32(0), **{name: inputs[name] * 0 for name in runtime.g}})
    for w, m, a, g in zip(runtime.w, runtime.m, runtime.a, runtime.g, strict=True):
        slope = still[m] - 0.9 * inputs[m] + 0.01 * (inputs[w] - inputs[a]) + inputs[g]
        np.testing.assert_allclose(output[m], 0.9 * inputs[m] + slope, atol=1e-5)
        np.testing.assert_allclose(output[w], inputs[w] - 0.1 * output[m], atol=1e-5)


def test_padding_has_no_effect(exported: tuple[Any, training.TrainingRuntime]) -> None:
    model, runtime = exported
    inputs = step_inputs(model, runtime.spec, np.random.default_rng(5), counted=11)
    other = {**inputs, "x": inputs["x"].copy(), "y": inputs["y"].copy()}
    other["x"][11:], other["y"][11:] = 100.0, 0
    assert_close(runtime.step(other), runtime.step(inputs), 1e-6)


def test_infer_is_the_model(exported: tuple[Any, training.TrainingRuntime]) -> None:
    model, runtime = exported
    x = np.random.default_rng(6).normal(size=(40, *runtime.input_shape)).astype(np.float32)
    np.testing.assert_allclose(training.infer(runtime, weights.get(model), x), model(x).numpy(), atol=1e-5)


def test_the_loop_learns(exported: tuple[Any, training.TrainingRuntime]) -> None:
    model, runtime = exported
    rng = np.random.default_rng(7)
    y = rng.integers(0, 4, 100)
    shapes = rng.normal(size=(4, *runtime.input_shape))
    x = (shapes[y] + rng.normal(size=(100, *runtime.input_shape)) / 4).astype(np.float32)
    start = weights.get(model)
    first = training.train(runtime, start, x, y, epochs=1, learning_rate=0.05, momentum=0.9, seed=0)
    last = training.train(runtime, start, x, y, epochs=15, learning_rate=0.05, momentum=0.9, seed=0)
    assert last.loss < first.loss / 2


REFUSED = {
    "dropout": (lambda: sequential((4,), L.Dense(4), L.Dropout(0.5, name="half"), L.Dense(2)), "'half' .Dropout."),
    "overlapping": (
        lambda: sequential((8, 8, 1), L.MaxPool2D(3, strides=2, name="over"), L.Flatten(), L.Dense(2)),
        "'over' .MaxPooling2D.*overlap",
    ),
    "multiplied": (
        lambda: sequential((8, 8, 1), L.DepthwiseConv2D(3, depth_multiplier=2, name="two"), L.Flatten(), L.Dense(2)),
        "'two' .DepthwiseConv2D.*use 1",
    ),
    "rolled": (lambda: sequential((6, 3), L.GRU(4, name="loop"), L.Dense(2)), "'loop' .GRU.*unroll"),
    "exact gelu": (lambda: sequential((4,), L.Dense(4, activation="gelu", name="bell"), L.Dense(2)), "'bell' .Dense"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_layers_that_a_device_cannot_train_are_refused_by_name(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(UnsupportedLayerError, match=message):
        training_export.export(make())
