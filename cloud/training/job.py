"""Job kind `train`: take a snapshot, fit the transform, train, measure, register a version."""

import logging
import time
from typing import Any

import msgspec

from cloud import features
from cloud.data import register
from cloud.errors import TaskError
from cloud.learning.backend import use_tensorflow
from cloud.learning.task import load_task
from cloud.learning.weights import parameters
from contract import tensors
from contract.transform import Transform
from coordinator.client import JobContext

logger = logging.getLogger(__name__)


class TrainSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to train.

    Attributes:
        task: as for `cloud.learning.task.load_task`.
        model: name in the registry, the task's own if empty.
        options: for `load_data`.
        seed, epochs: instead of those of `fieldfare.toml`.
    """

    task: str
    model: str = ""
    options: dict[str, Any] = {}
    seed: int | None = None
    epochs: int | None = None


def run(context: JobContext) -> dict[str, Any]:
    """Train; the answer is `{"model", "version"}`. Run again after a kill, it registers the same version once.

    Raises:
        TaskError: the specification or the task is wrong.
        TrainingError: training gave nothing usable.
    """
    spec = _spec(context.spec)
    started = time.monotonic()
    task = load_task(spec.task)
    context.report(0.02, "reading data")
    data, snapshot = register(context.client, task, spec.options)
    transform = features.fit(task, data["x"][data["part"] == "train"])
    transform_sha256 = context.client.put_blob(transform.encode()).sha256
    epochs = task.training.epochs if spec.epochs is None else spec.epochs
    seed = task.training.seed if spec.seed is None else spec.seed
    context.report(0.1, f"loading {'torch' if task.framework == 'torch' else 'TensorFlow'}")

    def on_epoch(done: int, loss: float) -> None:
        context.report(0.2 + 0.75 * done / epochs, f"epoch {done} of {epochs}, loss {loss:.3f}")
        logger.info("epoch %d of %d: loss %.4f", done, epochs, loss)

    if task.framework == "torch":
        from cloud.training.torch_fit import fit
    else:
        use_tensorflow()
        from cloud.training.fit import fit

    x = Transform(transform).apply(data["x"])
    fitted = fit(task, data, x, epochs=epochs, seed=seed, on_epoch=on_epoch)
    context.report(0.97, "registering the version")
    version = context.client.create_version(
        spec.model or task.name,
        task=spec.task,
        weights_sha256=context.client.put_blob(tensors.dump(fitted.weights)).sha256,
        metrics=fitted.metrics,
        snapshot_sha256=snapshot.sha256,
        job=context.id,
        details={
            "transform_sha256": transform_sha256,
            "parameters": parameters(fitted.weights),
            "seed": seed,
            "epochs": epochs,
            "seconds": round(time.monotonic() - started, 1),
        },
    )
    context.report(1.0, f"{version.model}:{version.version}, test accuracy {fitted.metrics['test']['accuracy']:.3f}")
    return {"model": version.model, "version": version.version}


def _spec(fields: dict[str, Any]) -> TrainSpec:
    try:
        spec = msgspec.convert(fields, TrainSpec)
    except msgspec.ValidationError as error:
        raise TaskError(f"specification of a train job: {error}") from error
    if spec.epochs is not None and spec.epochs < 1:
        raise TaskError(f"specification of a train job: {spec.epochs} epochs; at least 1 is needed")
    return spec
