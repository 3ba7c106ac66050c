"""Filters are followed through a model's graph: what is zero can go, what is tied goes together."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cloud.learning.backend import use_tensorflow
from compression import tuning
from compression.errors import UnsupportedLayerError

pytestmark = pytest.mark.slow

keras: Any = None  # with L and channels: filled by the fixture, so that collection stays quick
L: Any = None
channels: Any = None


@pytest.fixture(scope="module", autouse=True)
def _tf_keras() -> None:
    use_tensorflow()
    with tuning.quiet():
        module = importlib.import_module("tf_keras")
    globals().update(keras=module, L=module.layers, channels=importlib.import_module("compression.channels"))


def sequential(shape: tuple[int, ...], *layers: Any) -> Any:
    return keras.Sequential([keras.Input(shape), *layers])


def residual() -> Any:
    x = keras.Input((8, 8, 3))
    stem = L.Conv2D(6, 3, padding="same", activation="relu", name="stem")(x)
    inner = L.Conv2D(5, 3, padding="same", use_bias=False, name="inner")(stem)
    inner = L.ReLU()(L.BatchNormalization(name="inner_bn")(inner))
    inner = L.Conv2D(6, 3, padding="same", name="outer")(inner)
    joined = L.ReLU()(L.Add(name="join")([stem, inner]))
    down = L.Conv2D(7, 1, strides=2, name="shortcut")(joined)
    main = L.Conv2D(7, 3, strides=2, padding="same", name="down")(joined)
    out = L.GlobalAveragePooling2D()(L.Add()([down, main]))
    return keras.Model(x, L.Dense(4, name="logits")(out))


def inception() -> Any:
    x = keras.Input((8, 8, 2))
    left = L.Conv2D(4, 1, activation="relu", name="left")(x)
    right = L.MaxPooling2D(3, strides=1, padding="same")(L.Conv2D(3, 3, padding="same", name="right")(x))
    both = L.Concatenate()([left, right, x])
    both = L.SeparableConv2D(6, 3, depth_multiplier=2, activation="relu", name="mix")(both)
    gate = L.Reshape((1, 1, 6))(L.GlobalMaxPooling2D()(both))
    gate = L.Conv2D(6, 1, activation="sigmoid", name="gate")(L.Conv2D(3, 1, activation="relu", name="squeeze")(gate))
    out = L.Flatten()(L.Multiply()([both, gate]))
    return keras.Model(x, L.Dense(4, name="logits")(out))


MODELS: dict[str, Callable[[], Any]] = {
    "dense": lambda: sequential((20,), L.Dense(16, activation="relu"), L.Dense(8, activation="relu"), L.Dense(6)),
    "flat": lambda: sequential(
        (9, 9, 2),
        L.Conv2D(4, 3, padding="same"),
        L.BatchNormalization(),
        L.ReLU(),
        L.MaxPool2D(),
        L.ZeroPadding2D(),
        L.Conv2D(6, 3, activation="relu"),
        L.Flatten(),
        L.BatchNormalization(),
        L.Dense(7, activation="relu"),
        L.Dropout(0.2),
        L.Dense(5),
    ),
    "depthwise": lambda: sequential(
        (10, 10, 3),
        L.Conv2D(5, 3, activation="relu"),
        L.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
        L.BatchNormalization(scale=False),
        L.ReLU(6.0),
        L.Conv2D(8, 1, activation="relu"),
        L.DepthwiseConv2D(3, strides=2, use_bias=False),
        L.GlobalAveragePooling2D(keepdims=True),
        L.Flatten(),
        L.Dense(4),
    ),
    "signal": lambda: sequential(
        (24, 3),
        L.Conv1D(8, 5, activation="relu"),
        L.AveragePooling1D(2),
        L.SeparableConv1D(6, 3, activation="relu"),
        L.DepthwiseConv1D(3),
        L.Dense(7, activation="relu"),
        L.Reshape((42, 1)),
        L.Reshape((6, 7)),
        L.GlobalMaxPooling1D(),
        L.Dense(4),
    ),
    "residual": residual,
    "inception": inception,
}


def made(name: str) -> Any:
    keras.utils.set_random_seed(3)
    model = MODELS[name]()
    rng = np.random.default_rng(3)
    model.set_weights([rng.normal(0.3, 0.5, array.shape) ** 2 + 0.1 for array in model.get_weights()])
    for layer in model.layers:  # of both signs, but for the variances of BatchNorm
        arrays = layer.get_weights()
        keep = 1 if type(layer).__name__ == "BatchNormalization" else 0
        free = len(arrays) - keep
        layer.set_weights([rng.normal(0, 0.5, array.shape) for array in arrays[:free]] + arrays[free:])
    return model


def some_roots(followed: Any, rng: np.random.Generator) -> list[int]:
    """Of every group some, never all of a layer."""
    cut: set[int] = set()
    for names in followed.groups():
        free = np.unique(followed.roots(np.concatenate([followed.made[name] for name in names])))
        free = free[free != 0]
        cut |= set(rng.permutation(free)[: len(free) // 2].tolist())
    for numbers in followed.made.values():
        roots = followed.roots(numbers)
        if np.isin(roots, list(cut)).all():
            cut -= set(roots.tolist())
    return sorted(cut)


def silence(followed: Any, cut: list[int]) -> None:
    """Make the filters zero, and what BatchNorm adds to them; what reads them stays as it is."""
    for layer in followed.model.layers:
        arrays = layer.get_weights()
        for array, axes in zip(arrays, followed.axes.get(layer.name, []), strict=bool(followed.axes.get(layer.name))):
            if -1 in axes:
                array[..., np.isin(followed.roots(axes[-1]), cut)] = 0
        layer.set_weights(arrays)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", list(MODELS))
def test_filters_that_are_zero_can_go_and_the_logits_stay(name: str, seed: int) -> None:
    followed = channels.Channels(made(name))
    cut = some_roots(followed, np.random.default_rng(seed))
    assert cut
    silence(followed, cut)
    x = np.random.default_rng(seed).normal(size=(5, *followed.model.input_shape[1:])).astype(np.float32)
    want = followed.model(x, training=False).numpy()
    smaller = followed.without(cut)
    np.testing.assert_allclose(smaller(x, training=False).numpy(), want, rtol=1e-4, atol=1e-4)
    before, after = channels.cost(followed.model), channels.cost(smaller)
    assert after["weights"] < before["weights"]
    assert after["macs"] < before["macs"]
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in followed.model.layers]


@pytest.mark.parametrize("name", list(MODELS))
def test_without_nothing_is_the_model_itself(name: str) -> None:
    model = made(name)
    x = np.random.default_rng(0).normal(size=(5, *model.input_shape[1:])).astype(np.float32)
    same = channels.Channels(model).without([])
    np.testing.assert_array_equal(same(x, training=False).numpy(), model(x, training=False).numpy())


def test_what_add_joins_is_one_group_and_the_logits_are_fixed() -> None:
    followed = channels.Channels(made("residual"))
    assert sorted(sorted(names) for names in followed.groups()) == [
        ["down", "shortcut"],
        ["inner"],
        ["logits"],
        ["outer", "stem"],
    ]
    assert not followed.roots(followed.made["logits"]).any()
    np.testing.assert_array_equal(followed.roots(followed.made["stem"]), followed.roots(followed.made["outer"]))


def test_what_add_joins_to_the_input_stays() -> None:
    x = keras.Input((6, 6, 3))
    y = L.Add()([x, L.Conv2D(3, 3, padding="same", name="beside")(x)])
    followed = channels.Channels(keras.Model(x, L.Dense(2)(L.Flatten()(y))))
    assert not followed.roots(followed.made["beside"]).any()


def test_the_best_filters_stay_and_no_layer_is_left_without_any() -> None:
    followed = channels.Channels(made("inception"))
    scores = {name: np.arange(1.0, 1 + len(numbers)) for name, numbers in followed.made.items()}
    cut = channels.fraction_cut(followed, scores, 0.01, {"left": 0.5})
    smaller = followed.without(cut)
    filters = {name: smaller.get_layer(name).output_shape[-1] for name in followed.made}
    assert filters == {"left": 2, "right": 1, "mix": 1, "squeeze": 1, "gate": 1, "logits": 4}
    assert int(followed.made["left"][-1]) not in cut
    assert int(followed.made["left"][0]) in cut


def shared() -> Any:
    x = keras.Input((6, 6, 4))
    twice = L.Conv2D(4, 3, padding="same", name="twice")
    return keras.Model(x, L.Dense(2)(L.Flatten()(twice(twice(x)))))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: sequential((6, 3), L.LSTM(4, name="memory"), L.Dense(2)), "memory: .*type LSTM"),
        (lambda: sequential((6, 6, 4), L.Conv2D(4, 3, groups=2, name="pairs"), L.Flatten(), L.Dense(2)), "pairs: "),
        (lambda: sequential((None, 3), L.Conv1D(4, 3), L.GlobalMaxPooling1D(), L.Dense(2)), "not fixed"),
        (lambda: sequential((6,), L.LayerNormalization(name="own"), L.Dense(2)), "own: .*type LayerNormalization"),
        (shared, "twice: is used 2 times"),
    ],
)
def test_a_layer_that_cannot_be_followed_is_refused_by_its_name(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=message):
        channels.Channels(build())
