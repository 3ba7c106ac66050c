"""Fit a Keras model of a task and measure it: arrays in, weights and numbers out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloud.errors import TrainingError
from cloud.learning import calibration, metrics, weights
from cloud.learning.task import Data, Task
from contract.tensors import Arrays

OnEpoch = Callable[[int, float], None]


@dataclass(frozen=True)
class Fitted:
    """What training gave.

    Attributes:
        weights: named, in the order of the training signature.
        metrics: overall and per device, see `measured`.
    """

    weights: Arrays
    metrics: dict[str, Any]


def fit(task: Task, data: Data, x: np.ndarray, *, epochs: int, seed: int, on_epoch: OnEpoch) -> Fitted:
    """Train on the training part with Adam, measure on the other two.

    Needs Keras' TensorFlow backend (`cloud.learning.backend.use_tensorflow`).

    Args:
        task: its plan gives batch size and learning rate.
        data: columns y, device, part.
        x: float32 model input of the same samples.
        epochs: passes over the training part.
        seed: of initial weights and shuffles.
        on_epoch: called with the number of epochs done and the mean loss of the last.

    Raises:
        TrainingError: the loss became infinite or no number.
    """
    import keras

    model = weights.build(task, seed=seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(task.training.learning_rate), loss)
    train = data["part"] == "train"
    told = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: on_epoch(epoch + 1, float(logs["loss"])))
    history = model.fit(
        x[train],
        data["y"][train],
        batch_size=task.training.batch,
        epochs=epochs,
        verbose=0,
        callbacks=[told, keras.callbacks.TerminateOnNaN()],
    )
    last = history.history["loss"][-1]
    if not np.isfinite(last):
        raise TrainingError(f"{task.name}: the loss became {last}; lower training.learning_rate in fieldfare.toml")
    found = measured(lambda given: np.asarray(model(given, training=False)), data, x)
    found["training"] = {"epochs": epochs, "loss": float(last), "samples": int(train.sum())}
    return Fitted(weights.get(model), found)


def measured(logits_of: Callable[[np.ndarray], np.ndarray], data: Data, x: np.ndarray) -> dict[str, Any]:
    """Metrics of validation and test samples: accuracy, cross-entropy (nats), calibration error, accuracy by device.

    The temperature is fitted on the validation samples and used for both.
    """
    logits = {part: logits_of(x[data["part"] == part]) for part in ("validation", "test")}
    temperature = calibration.temperature(logits["validation"], data["y"][data["part"] == "validation"])
    found: dict[str, Any] = {"temperature": temperature}
    for part, values in logits.items():
        mine = data["part"] == part
        y = data["y"][mine]
        found[part] = {
            "samples": int(mine.sum()),
            "accuracy": metrics.accuracy(values, y),
            "cross_entropy": metrics.cross_entropy(values, y, temperature),
            "calibration_error": metrics.calibration_error(metrics.softmax(values, temperature), y),
            "devices": metrics.by_group(values, y, data["device"][mine]),
        }
    return found
