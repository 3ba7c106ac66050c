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
    "dilated": lambda: sequential(
        (12, 3),
        L.Conv1D(
            6, 3, dilation_rate=2, padding="same", activation=lambda t: keras.activations.gelu(t, approximate=True)
        ),
        L.SeparableConv1D(5, 3, activation="relu"),
        L.AveragePooling1D(2),
        L.GlobalMaxPooling1D(),
        L.Dense(4),
    ),
    "remembering": lambda: sequential((6, 3), L.LSTM(5, unroll=True), L.Dense(4)),
    "gated": lambda: sequential((6, 3), L.GRU(5, unroll=True), L.Dense(4)),
    "frozen": lambda: frozen(
        sequential(
            (8, 8, 1),
            L.Conv2D(4, 3, activation="relu", name="body"),
            L.BatchNormalization(name="norm"),
            L.Flatten(),
            L.Dense(4, name="head"),
        ),
        "body",
        "norm",
    ),
}
TOLERANCE = {"normalized": 1e-3}  # of BatchNorm; otherwise 1e-4, relative


def frozen(model: Any, *names: str) -> Any:
    for name in names:
        model.get_layer(name).trainable = False
    return model


def step_inputs(
    model: Any, spec: Any, rng: np.random.Generator, counted: int = 32, optimizer: Any = "sgd"
) -> dict[str, np.ndarray]:
    arrays = list(weights.get(model).values())
    trained, kept = arrays[: len(spec.weights)], arrays[len(spec.weights) :]
    noise = {
        name: rng.normal(size=array.shape).astype(np.float32) / 10
        for letter in "mag"
        for name, array in zip(names(letter, len(trained)), trained, strict=True)
    }
    if optimizer == "adam":
        noise |= {
            name: rng.random(array.shape).astype(np.float32) / 100
            for name, array in zip(names("v", len(trained)), trained, strict=True)
        } | {"step": np.float32(3)}
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
        "decay": np.float32(0.02),
    }


def traced(
    model: Any, spec: Any, optimizer: Any = "sgd", *, builtin: bool
) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    signature = training_export.train_signature(model, spec, optimizer)
    function = tf.function(training_export._train(model, spec, optimizer, builtin=builtin), input_signature=signature)
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


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", list(MODELS))
def test_five_steps_on_the_device_are_those_of_tensorflow(name: str, optimizer: Any) -> None:
    keras.utils.set_random_seed(1)
    model = MODELS[name]()
    content, spec = training_export.export(model, optimizers=[optimizer])
    runtime, native = training.TrainingRuntime(content, spec), traced(model, spec, optimizer, builtin=False)
    rng = np.random.default_rng(1)
    inputs = step_inputs(model, spec, rng, optimizer=optimizer) | {"lr": np.float32(0.01)}
    device, wanted = inputs, inputs
    for _ in range(5):
        sample = {
            "x": rng.normal(size=inputs["x"].shape).astype(np.float32),
            "y": rng.integers(0, model.output_shape[-1], 32).astype(np.int32),
        }
        got, want = runtime.step({**device, **sample}, optimizer), native({**wanted, **sample})
        device, wanted = (
            {**old, **{k: new[k] for k in new if k in old}} for old, new in ((device, got), (wanted, want))
        )
    assert set(got) == set(want)
    for name_, array in want.items():
        error = np.abs(got[name_] - array).max() / max(np.abs(array).max(), 1e-6)
        assert error < TOLERANCE.get(name, 1e-4), f"{name_}: {error}"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_loop_goes_where_keras_own_optimizer_goes(optimizer: Any) -> None:
    keras.utils.set_random_seed(1)
    model = MODELS["dense"]()
    content, spec = training_export.export(model)
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(96, 20)).astype(np.float32), rng.integers(0, 6, 96)
    got = training.train(
        training.TrainingRuntime(content, spec), weights.get(model), x, y,
        epochs=2, learning_rate=0.01, optimizer=optimizer, momentum=0.9, weight_decay=0.1, seed=5,
    )  # fmt: skip
    kind = {"sgd": lambda: keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=0.1)}.get(
        optimizer, lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1)
    )
    model.compile(kind(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    shuffles = np.random.default_rng(5)
    for _ in range(2):
        order = shuffles.permutation(96)
        for start in range(0, 96, 32):
            model.train_on_batch(x[order[start : start + 32]], y[order[start : start + 32]])
    for name, array in weights.get(model).items():
        np.testing.assert_allclose(got.weights[name], array, atol=1e-5, err_msg=name)


def test_frozen_layers_stay_and_only_the_head_is_trained() -> None:
    keras.utils.set_random_seed(1)
    model = MODELS["frozen"]()
    content, spec = training_export.export(model)
    assert [tensor.name.split("/")[-2] for tensor in spec.weights] == ["head", "head"]
    runtime, start = training.TrainingRuntime(content, spec), weights.get(model)
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(40, 8, 8, 1)).astype(np.float32), rng.integers(0, 4, 40)
    for optimizer in spec.optimizers:
        trained = training.train(
            runtime, start, x, y, epochs=1, learning_rate=0.01, optimizer=optimizer, momentum=0.9, seed=0
        ).weights
        assert list(trained) == list(start)
        changed = {name for name in start if (trained[name] != start[name]).any()}
        assert changed == {tensor.name for tensor in spec.weights}
    with pytest.raises(UnsupportedLayerError, match="frozen"):
        training_export.export(frozen(model, "head"))


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
        np.testing.assert_allclose(output[w], inputs[w] * (1 - 0.1 * 0.02) - 0.1 * output[m], atol=1e-5)


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
    "channels first": (
        lambda: sequential(
            (1, 8, 8), L.Conv2D(2, 3, data_format="channels_first", name="first"), L.Flatten(), L.Dense(2)
        ),
        "'first' .Conv2D.*channels come first",
    ),
    "padded mean": (
        lambda: sequential(
            (7, 7, 1), L.Conv2D(2, 1), L.AveragePooling2D(2, padding="same", name="mean"), L.Flatten(), L.Dense(2)
        ),
        "'mean' .AveragePooling2D.*average pooling over padding",
    ),
    "leaky": (
        lambda: sequential((4,), L.Dense(4), L.LeakyReLU(name="leak"), L.Dense(2)),
        "'leak' .LeakyReLU.*LeakyRelu",
    ),
    "elu": (lambda: sequential((4,), L.Dense(4, activation="elu", name="soft"), L.Dense(2)), "'soft' .Dense.*EluGrad"),
    "transposed": (
        lambda: sequential((4, 4, 1), L.Conv2DTranspose(2, 3, name="back"), L.Flatten(), L.Dense(2)),
        "'back' .Conv2DTranspose",
    ),
    "grouped": (
        lambda: sequential((6, 6, 4), L.Conv2D(4, 3, groups=2, name="pairs"), L.Flatten(), L.Dense(2)),
        "'pairs' .Conv2D",
    ),
    "exact gelu": (lambda: sequential((4,), L.Dense(4, activation="gelu", name="bell"), L.Dense(2)), "'bell' .Dense"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_layers_that_a_device_cannot_train_are_refused_by_name(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(UnsupportedLayerError, match=message) as caught:
        training_export.export(make())
    assert "\n" not in str(caught.value)


def test_a_wrapped_layer_without_dropout_draws_nothing() -> None:
    model = sequential((6, 3), L.Bidirectional(L.LSTM(2, unroll=True)), L.Dense(2))
    training_export.check_layers(model)
