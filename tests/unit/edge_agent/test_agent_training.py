"""The training loop over the stateless signature, against a slow readable twin in numpy."""

import numpy as np
import pytest

from contract.tensors import Arrays
from edge_agent.errors import (
    RuntimeModelError,
    TrainingDivergedError,
    TrainingError,
    TrainingStoppedError,
)
from edge_agent.runtime import softmax
from edge_agent.training import TrainingRuntime, infer, train
from tests.fakes import agent_models

SPEC = agent_models.SPEC


@pytest.fixture(scope="module")
def runtime() -> TrainingRuntime:
    return TrainingRuntime(agent_models.read("training"), SPEC)


def _data(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    raw, y = agent_models.samples(count, seed)
    return raw.astype(np.float32) / 16, y


def _zeros() -> Arrays:
    return {name: np.zeros_like(array) for name, array in agent_models.weights().items()}


def _twin(
    start: Arrays, x: np.ndarray, y: np.ndarray, *, epochs: int, lr: float, momentum: float, mu: float, seed: int
) -> tuple[Arrays, float, float]:
    """What `contract.training` says, in numpy: m' = momentum m + G, w' = w - lr m'."""
    w = {name: array.astype(np.float64) for name, array in start.items()}
    m = {name: np.zeros_like(array) for name, array in w.items()}
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        losses, right = 0.0, 0
        order = random.permutation(len(x))
        for begin in range(0, len(x), SPEC.batch):
            rows = order[begin : begin + SPEC.batch]
            flat, label = x[rows].reshape(len(rows), -1).astype(np.float64), np.eye(3)[y[rows]]
            logits = flat @ w["dense/kernel"] + w["dense/bias"]
            probability = softmax(logits).astype(np.float64)
            losses -= np.log((probability * label).sum(1)).sum()
            right += int((logits.argmax(1) == y[rows]).sum())
            error = (probability - label) / len(rows)
            gradients = {"dense/kernel": flat.T @ error, "dense/bias": error.sum(0)}
            for name, gradient in gradients.items():
                m[name] = momentum * m[name] + gradient + mu * (w[name] - start[name])
                w[name] = w[name] - lr * m[name]
    return w, losses / len(x), right / len(x)


@pytest.mark.parametrize(("count", "momentum", "mu"), [(32, 0.0, 0.0), (37, 0.9, 0.0), (5, 0.5, 0.3)])
def test_the_loop_agrees_with_its_twin_also_where_the_last_batch_is_short(
    runtime: TrainingRuntime, count: int, momentum: float, mu: float
) -> None:
    x, y = _data(count)
    got = train(runtime, _zeros(), x, y, epochs=3, learning_rate=0.2, momentum=momentum, proximal_mu=mu, seed=4)
    want, loss, accuracy = _twin(_zeros(), x, y, epochs=3, lr=0.2, momentum=momentum, mu=mu, seed=4)
    for name, array in want.items():
        np.testing.assert_allclose(got.weights[name], array, atol=2e-5)
    assert got.loss == pytest.approx(loss, abs=1e-4)
    assert got.accuracy == pytest.approx(accuracy)
    assert (got.examples, list(got.weights)) == (count, list(_zeros()))


def test_the_same_seed_gives_the_same_bits(runtime: TrainingRuntime) -> None:
    x, y = _data(20)
    first, second = (train(runtime, _zeros(), x, y, epochs=2, learning_rate=0.1, seed=3) for _ in range(2))
    assert all((first.weights[name] == second.weights[name]).all() for name in first.weights)


def test_an_offset_that_cancels_the_gradient_leaves_the_weights(runtime: TrainingRuntime) -> None:
    x, y = _data(SPEC.batch)
    step = train(runtime, _zeros(), x, y, epochs=1, learning_rate=1.0, seed=0).weights
    offset = {name: array.copy() for name, array in step.items()}  # from zero, one step is minus the gradient
    still = train(runtime, _zeros(), x, y, epochs=1, learning_rate=1.0, offset=offset, seed=0)
    for array in still.weights.values():
        np.testing.assert_allclose(array, 0, atol=1e-6)


def test_infer_gives_the_logits_of_the_given_weights_for_any_number_of_samples(runtime: TrainingRuntime) -> None:
    x, y = _data(21)
    logits = infer(runtime, agent_models.weights(), x)
    assert logits.shape == (21, 3)
    assert (logits.argmax(axis=1) == y).all()


def test_training_that_diverges_says_so(runtime: TrainingRuntime) -> None:
    x, y = _data(16)
    with pytest.raises(TrainingDivergedError, match="learning rate"):
        train(runtime, _zeros(), x * np.float32(1e30), y, epochs=3, learning_rate=1e30, seed=0)


def test_training_stops_when_asked(runtime: TrainingRuntime) -> None:
    x, y = _data(16)
    with pytest.raises(TrainingStoppedError):
        train(runtime, _zeros(), x, y, epochs=1, learning_rate=0.1, seed=0, should_stop=lambda: True)


def test_what_does_not_fit_is_refused_by_name(runtime: TrainingRuntime) -> None:
    x, y = _data(4)
    renamed = dict(zip(["dense/bias", "dense/kernel"], reversed(_zeros().values()), strict=True))
    with pytest.raises(TrainingError, match="expected weights"):
        infer(runtime, renamed, x)
    with pytest.raises(TrainingError, match="dense/bias"):
        infer(runtime, _zeros() | {"dense/bias": np.zeros(4, np.float32)}, x)
    with pytest.raises(TrainingError, match="samples of shape"):
        infer(runtime, _zeros(), x[:, :3])
    with pytest.raises(TrainingError, match="nothing to train on"):
        train(runtime, _zeros(), x[:0], y[:0], epochs=1, learning_rate=0.1, seed=0)
    with pytest.raises(TrainingError, match="has no adam, it has sgd"):
        train(runtime, _zeros(), x, y, epochs=1, learning_rate=0.1, optimizer="adam", seed=0)
    with pytest.raises(TrainingError, match="older than weight decay"):
        train(runtime, _zeros(), x, y, epochs=1, learning_rate=0.1, weight_decay=0.1, seed=0)
    with pytest.raises(TrainingError, match="offsets"):
        train(runtime, _zeros(), x, y, epochs=1, learning_rate=0.1, offset={}, seed=0)
    with pytest.raises(RuntimeModelError):
        TrainingRuntime(agent_models.read("float"), SPEC)
