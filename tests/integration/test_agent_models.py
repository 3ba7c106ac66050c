"""The stored tiny models are what their script makes today."""

import numpy as np
import pytest

from edge_agent.runtime import Runtime
from edge_agent.training import TrainingRuntime, train
from tests.fakes import agent_models


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)  # TensorFlow's own
def test_the_stored_models_behave_as_freshly_made_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    made = agent_models.build()
    raw, y = agent_models.samples(40, seed=9)
    x = raw.astype(np.float32) / 16
    for name in ("float", "int8"):
        stored, fresh = (Runtime(model).logits(x) for model in (agent_models.read(name), made[name]))
        np.testing.assert_allclose(stored, fresh, atol=1e-5)
    start = {name: np.zeros_like(array) for name, array in agent_models.weights().items()}
    stored, fresh = (
        train(TrainingRuntime(model, agent_models.SPEC), start, x, y, epochs=2, learning_rate=0.1, seed=0).weights
        for model in (agent_models.read("training"), made["training"])
    )
    for name, array in stored.items():
        np.testing.assert_allclose(array, fresh[name], atol=1e-6)
