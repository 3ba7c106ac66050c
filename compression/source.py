"""What compression starts from: a version's weights, and the task, data and transform of the line it comes from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloud.learning import snapshot
from cloud.learning.task import UNLABELLED, Task, load_task
from compression import checks
from compression.errors import RecipeError
from contract import bundle, tensors, transform
from coordinator.client import Client, Version


@dataclass(frozen=True)
class Part:
    """Samples of one part: raw, as model input (float32), their classes, and the devices that they are from."""

    raw: np.ndarray
    x: np.ndarray
    y: np.ndarray
    device: np.ndarray


@dataclass(frozen=True)
class Source:
    """Everything that variants and a bundle are made from.

    A federated version has no data of its own: snapshot and transform are those of the nearest ancestor that has them.

    Attributes:
        temperature: of the bundle on which the cohort counted this version's reference profile, None without one.
            Those confidences were divided by it, and the laboratory's samples are not what the devices see: a
            temperature fitted to them would make the version look unsure of itself in the field.
        unlabelled: model input of the snapshot's samples without a class, float32 (n, *input); None without any.
    """

    version: Version
    task: Task
    weights: tensors.Arrays
    transform: transform.Transform
    train: Part
    validation: Part
    test: Part
    temperature: float | None = None
    unlabelled: np.ndarray | None = None


def load(client: Client, model: str, version: int, task: str = "") -> Source:
    """Fetch what is needed, digests checked on the way.

    Args:
        client: of the coordinator.
        model: its name.
        version: of the model.
        task: instead of the one that the version names.

    Raises:
        RecipeError: a version without weights, no ancestor with a snapshot or a transform, or a part whose samples or
            classes make no sense.
        StageError: weights that are not finite.
        TaskError, DataError, TensorError: parts that cannot be used.
    """
    line = list(_line(client, model, version))
    if not line[0].weights_sha256:
        raise RecipeError(
            f"{model}:{version} was brought in as an artifact and has no weights; import another artifact of it instead"
        )
    snapshot_sha256 = _nearest(line, "data snapshot", [entry.snapshot_sha256 for entry in line])
    transform_sha256 = _nearest(line, "transform", [entry.details.get("transform_sha256") for entry in line])
    executor = transform.Transform(transform.decode(client.get_blob(transform_sha256)))
    record = next((found for found in client.snapshots() if found.sha256 == snapshot_sha256), None)
    if record is None:
        raise RecipeError(f"{model}:{version}: the registry has no snapshot {snapshot_sha256}")
    data = snapshot.load(snapshot.manifest_of(record.manifest), client.get_blob)
    parts = {}
    for name in ("train", "validation", "test"):
        mine = data["part"] == name
        parts[name] = Part(data["x"][mine], executor.apply(data["x"][mine]), data["y"][mine], data["device"][mine])
    extra = data["x"][data["part"] == UNLABELLED]
    unlabelled = executor.apply(extra) if len(extra) else None
    weights = tensors.load(client.get_blob(line[0].weights_sha256))
    named = load_task(task or line[0].task)
    temperature = _temperature(client, line[0])
    found = Source(line[0], named, weights, executor, **parts, temperature=temperature, unlabelled=unlabelled)
    checks.source(found)
    return found


def _temperature(client: Client, version: Version) -> float | None:
    served = version.details.get("federated", {}).get("bundle")
    if version.reference_sha256 is None or not served:
        return None
    return bundle.unpack(client.get_blob(served)).manifest.temperature


def _line(client: Client, model: str, version: int) -> Iterator[Version]:
    """The version and its ancestors, nearest first; of several parents the first."""
    number: int | None = version
    while number is not None:
        found = client.get_version(model, number)
        yield found
        number = found.parents[0] if found.parents else None


def _nearest(line: list[Version], what: str, values: list[Any]) -> str:
    for value in values:
        if value:
            return str(value)
    raise RecipeError(f"{line[0].model}:{line[0].version}: neither it nor an ancestor has a {what}")
