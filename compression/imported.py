"""A `.tflite` from elsewhere as a version of a model: looked into, tried, measured, and bundled for inference.

It has no weights that could be trained or compressed again: the artifact is the version. Labels, transform, golden
vectors and the reference profile come from a task, or from labelled samples alone.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import msgspec
import numpy as np

from cloud import features
from cloud.errors import TaskError
from cloud.learning.task import PARTS, Data, Task, TrainingPlan, TransformPlan, check_data
from compression import bench, checks, gate, inspection, shipping, trial
from compression.candidate import Candidate
from compression.errors import ArtifactError, RecipeError
from compression.inspection import Inspection
from compression.measure import Judge, Report
from compression.recipe import Recipe
from compression.shipping import Training
from compression.source import Part, Source
from contract import tensors, transform
from contract.errors import TensorError
from coordinator.client import Bundle, Client, Gate, Gates, Version

VARIANT = "imported"
_NO_TRAINING = "the artifact was brought in without weights"


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a file.

    Attributes:
        version: number that the registry gave; the same file gets the same one again.
        bundle: None where the gates refused it.
        reasons: why they did; empty where they did not.
    """

    model: str
    version: int
    variant: str
    inspection: Inspection
    report: Report
    bundle: Bundle | None
    reasons: list[str]


def register(
    client: Client,
    content: bytes,
    model: str,
    task: Task,
    *,
    gates: Gates | None = None,
    hardware_classes: Sequence[str] = (),
) -> Imported:
    """Bring an artifact in.

    Args:
        client: of the coordinator.
        content: the `.tflite`.
        model: that it becomes a version of.
        task: gives samples, labels and transform; see `task_of_samples` where there are samples alone.
        gates: that hold beside the model's own. Losses are against the artifact itself, so they ask for nothing.
        hardware_classes: that may run the bundle; none is any.

    Raises:
        ArtifactError: no `.tflite`, one that the runtime refuses (its reason is in the message), or one that does not
            fit the task's samples and labels.
        TaskError, RecipeError, StageError: data that cannot be used.
        ClientError: the registry refuses.
    """
    found = inspection.inspect(content)
    refused = trial.refusal(content)
    if refused:
        raise ArtifactError(f"the runtime refuses the artifact: {refused}")
    origin = _source(model, task)
    _check_fit(found, origin)
    judge = Judge(origin, content)
    report = judge.test(judge.validation(content), content)
    own = client.gates(model) if model in {each.name for each in client.models()} else None
    gates = gate.stricter(own, gates) if own and gates else own or gates or Gates()
    measured = bench.newest(client.measurements(found.sha256))
    reasons = gate.reasons(report, gates, measured)
    notes = [] if gates.require_measurement else bench.missing(gates, measured, gate.LOCAL)
    version = client.create_version(
        model,
        task=task.ref,
        artifact_sha256=client.put_blob(content).sha256,
        metrics=_metrics(report),
        details={
            "transform_sha256": client.put_blob(origin.transform.spec.encode()).sha256,
            "inspection": msgspec.to_builtins(found),
        },
    )
    client.create_variant(
        model,
        version.version,
        name=VARIANT,
        tflite_sha256=found.sha256,
        report=msgspec.to_builtins(report) | {"recipe": {"name": VARIANT, "stages": []}, "records": []},
        gate=Gate(passed=not reasons, reasons=reasons, notes=notes),
    )
    bundle = None
    if not reasons or gate.overridden(version.overrides, VARIANT, found.sha256, reasons):
        made = Candidate(Recipe(name=VARIANT, stages=[]), content, [], report)
        parts = shipping.bundle_recipe(
            client,
            dataclasses.replace(origin, version=version),
            made,
            Training(None, None, _NO_TRAINING),
            list(hardware_classes),
        )
        bundle = client.create_bundle(model, version.version, VARIANT, **parts)
    return Imported(
        model=model,
        version=version.version,
        variant=VARIANT,
        inspection=found,
        report=report,
        bundle=bundle,
        reasons=reasons,
    )


def task_of_samples(path: Path, labels: Sequence[str], *, seed: int = 0) -> Task:
    """Labelled samples as a task that can be measured on, not trained: a third each is train, validation and test.

    Args:
        path: safetensors with `x`, what the artifact takes as float32 (n, *input), and `y` integers (n,).
        labels: names of the classes, in the order of the artifact's outputs.
        seed: which sample is in which part.

    Raises:
        RecipeError: a file that cannot be read, or other tensors.
        TaskError: samples and labels that do not fit each other.
    """
    try:
        found = tensors.load(path.read_bytes())
    except (OSError, TensorError) as error:
        raise RecipeError(f"{path}: cannot be read as safetensors: {error}") from error
    if set(found) != {"x", "y"} or not all(array.ndim for array in found.values()) or found["y"].dtype.kind not in "iu":
        raise RecipeError(f"{path}: needs tensors `x` (n, *input) and `y` (n,) of integers, and nothing else")
    if len(found["x"]) != len(found["y"]) or len(found["y"]) < len(PARTS):
        raise RecipeError(f"{path}: needs tensors `x` and `y` of one length, and at least {len(PARTS)} samples")
    count = len(found["y"])
    part = np.array(PARTS)[np.random.default_rng(seed).permutation(count) % len(PARTS)]
    data: Data = {"x": found["x"], "y": found["y"].astype(np.int64), "device": np.full(count, "samples"), "part": part}

    def none(_keras: Any) -> NoReturn:
        raise TaskError(f"{path}: samples alone have no model to build")

    made = Task(
        ref="",
        name=path.stem,
        folder=path.parent,
        labels=tuple(labels),
        input_shape=tuple(found["x"].shape[1:]),
        transform=TransformPlan(),
        training=TrainingPlan(),
        options={},
        framework="keras",
        build_model=none,
        module=ModuleType(path.stem),
        _load_data=lambda: data,
    )
    check_data(data, made)
    return made


def _source(model: str, task: Task) -> Source:
    data = task.load_data()
    executor = transform.Transform(features.fit(task, data["x"][data["part"] == "train"]))
    train, validation, test = (_part(data, executor, data["part"] == name) for name in PARTS)
    draft = Version(model=model, version=0, created_at=0.0, task=task.ref, weights_sha256="")
    made = Source(draft, task, {}, executor, train, validation, test)
    checks.source(made)
    return made


def _part(data: Data, executor: transform.Transform, mine: np.ndarray) -> Part:
    return Part(data["x"][mine], executor.apply(data["x"][mine]), data["y"][mine], data["device"][mine])


def _check_fit(found: Inspection, origin: Source) -> None:
    taken, given = found.inputs[0].shape[1:], list(origin.train.x.shape[1:])
    if taken != given:
        raise ArtifactError(f"the artifact takes samples of shape {taken}, task {origin.task.name!r} gives {given}")
    classes, labels = found.outputs[0].shape[-1], len(origin.task.labels)
    if classes != labels:
        raise ArtifactError(
            f"the artifact answers with {classes} values, task {origin.task.name!r} has {labels} labels"
        )


def _metrics(report: Report) -> dict[str, Any]:
    return {
        "validation": {"accuracy": report.validation_accuracy, "calibration_error": report.calibration_error},
        "test": {"accuracy": report.accuracy},
    }
