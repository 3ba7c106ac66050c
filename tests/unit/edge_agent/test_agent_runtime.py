"""Inference in LiteRT, against the same arithmetic in numpy."""

import numpy as np
import pytest

from edge_agent.errors import RuntimeModelError
from edge_agent.runtime import Runtime, softmax
from tests.fakes import agent_models


def _numpy_logits(x: np.ndarray) -> np.ndarray:
    kernel, bias = agent_models.weights().values()
    return x.reshape(len(x), -1) @ kernel + bias


@pytest.mark.parametrize(("name", "tolerance"), [("float", 1e-5), ("int8", 0.4)])
def test_logits_are_those_of_the_model_whatever_its_io_type(name: str, tolerance: float) -> None:
    raw, labels = agent_models.samples(50, seed=1)
    x = raw.astype(np.float32) / 16
    runtime = Runtime(agent_models.read(name))
    logits = runtime.logits(x)
    assert runtime.input_shape == agent_models.SHAPE
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, _numpy_logits(x), atol=tolerance)
    assert (logits.argmax(axis=1) == labels).all()


def test_no_samples_give_no_logits() -> None:
    assert Runtime(agent_models.read("float")).logits(np.zeros((0, 4, 4, 1), np.float32)).shape == (0, 3)


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(RuntimeModelError, match="cannot load"):
        Runtime(b"no model at all")


def test_a_model_with_another_batch_size_is_refused_and_told_how_to_be_exported() -> None:
    with pytest.raises(RuntimeModelError, match="input"):
        Runtime(agent_models.read("training"))


def test_samples_of_another_shape_are_refused() -> None:
    with pytest.raises(RuntimeModelError, match="samples of shape"):
        Runtime(agent_models.read("float")).logits(np.zeros((1, 5, 4, 1), np.float32))


def test_softmax_sums_to_one_and_a_higher_temperature_is_less_sure() -> None:
    logits = np.array([[1000.0, 0.0, -1000.0], [1.0, 2.0, 3.0]], np.float32)
    sharp, soft = softmax(logits), softmax(logits, 5.0)
    np.testing.assert_allclose(sharp.sum(axis=1), 1, rtol=1e-6)
    assert soft[1].max() < sharp[1].max()
    with pytest.raises(RuntimeModelError, match="temperature"):
        softmax(logits, 0.0)
