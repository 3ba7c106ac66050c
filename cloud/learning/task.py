"""A task: what a user writes once. A folder with `fieldfare.toml` and one Python module.

The module has `build_model(keras) -> keras.Model` (logits), or with `framework = "torch"` `build_model(torch) ->
torch.nn.Module`, and `load_data(**options) -> dict` with arrays
x (n, *input_shape) raw, y (n,) int64, device (n,) text, part (n,) text in train, validation, test. A further part
`unlabelled` holds samples that nobody has put a class to: their y is -1, and a student learns from a teacher on them.
Further functions `build_*(keras)` may build students.
"""

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import msgspec
import numpy as np

from cloud.errors import TaskError
from contract.transform import Clip, Feature, Reshape

FILE = "fieldfare.toml"
GROUP = "fieldfare.tasks"  # entry points: name = "package that holds the folder"
PARTS = ("train", "validation", "test")
UNLABELLED = "unlabelled"  # a part that a task may have besides
NO_CLASS = -1  # in place of a class there

Data = dict[str, np.ndarray]


class ImputeStep(msgspec.Struct, frozen=True, tag_field="op", tag="impute", forbid_unknown_fields=True):
    """NaN becomes `value`, or the training part's mean or median."""

    value: float | None = None
    fit: Literal["mean", "median"] | None = None


class ScaleStep(msgspec.Struct, frozen=True, tag_field="op", tag="scale", forbid_unknown_fields=True):
    """(x - offset) / divisor as given, or fitted: `standard` (mean, deviation) or `range` (smallest, width)."""

    offset: list[float] | None = None
    divisor: list[float] | None = None
    fit: Literal["standard", "range"] | None = None


StepPlan = ImputeStep | ScaleStep | Clip | Reshape


class TransformPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The transform before it is fitted."""

    steps: list[StepPlan] = []
    features: list[Feature] = []


class TrainingPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the first model is trained: Adam on the cross-entropy, batches of `batch` samples."""

    epochs: int = 20
    batch: int = 32
    learning_rate: float = 0.001
    seed: int = 0


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    labels: list[str]
    input_shape: list[int]
    module: str = "task.py"
    framework: Literal["keras", "torch"] = "keras"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    task: _Section
    transform: TransformPlan = TransformPlan()
    training: TrainingPlan = TrainingPlan()
    options: dict[str, Any] = {}


@dataclass(frozen=True)
class Task:
    """A loaded task.

    Attributes:
        ref: what `load_task` was asked for, so that another process can ask for the same.
        labels: names of the classes, in the order of the model's outputs.
        input_shape: of one raw sample.
        options: arguments of `load_data` unless the caller gives others.
        framework: what `build_model` is given: a Keras, or torch for a `torch.nn.Module`.
    """

    ref: str
    name: str
    folder: Path
    labels: tuple[str, ...]
    input_shape: tuple[int, ...]
    transform: TransformPlan
    training: TrainingPlan
    options: dict[str, Any]
    framework: Literal["keras", "torch"]
    build_model: Callable[[Any], Any]
    module: ModuleType
    _load_data: Callable[..., Data]

    def load_data(self, **options: Any) -> Data:
        """The data, checked: `options` go over those of `fieldfare.toml`.

        Raises:
            TaskError: columns missing or of other lengths, samples of another shape, classes without a label,
                an unknown part, or no training sample.
        """
        data = self._load_data(**{**self.options, **options})
        check_data(data, self)
        return data

    def builder(self, name: str) -> Callable[[Any], Any]:
        """A further builder of the task's module, such as `build_student`: like `build_model`, of another network.

        Raises:
            TaskError: no such function; those that there are are named.
        """
        known = {key: value for key, value in vars(self.module).items() if key.startswith("build_") and callable(value)}
        if name not in known:
            raise TaskError(f"{self.module.__file__}: no function {name!r}; there is {', '.join(sorted(known))}")
        return known[name]


def load_task(ref: str) -> Task:
    """Load a task.

    Args:
        ref: a folder that holds `fieldfare.toml`, the name of an installed task (`digits`), or the dotted name of a
            package with such a folder (`fieldfare.digits`).

    Raises:
        TaskError: no such task, or one that cannot be used; the message names file and field.
    """
    folder, package = _find(ref)
    path = folder / FILE
    try:
        file = msgspec.toml.decode(path.read_bytes(), type=_File)
    except FileNotFoundError as error:
        raise TaskError(f"{path}: no such file; a task is a folder with {FILE} and a Python module") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: {error}") from error
    if len(file.task.labels) < 2 or len(set(file.task.labels)) != len(file.task.labels):
        raise TaskError(f"{path}: labels must be two or more different names")
    plan = file.training
    if plan.epochs < 1 or plan.batch < 1 or not 0 < plan.learning_rate < math.inf or not 0 <= plan.seed < 2**32:
        raise TaskError(f"{path}: training: epochs and batch must be 1 or more, learning_rate above 0, seed 0 or more")
    module = _module(folder / file.task.module, package)
    for function in ("build_model", "load_data"):
        if not callable(getattr(module, function, None)):
            raise TaskError(f"{folder / file.task.module}: needs a function {function}")
    return Task(
        ref=ref,
        name=file.task.name,
        folder=folder,
        labels=tuple(file.task.labels),
        input_shape=tuple(file.task.input_shape),
        transform=file.transform,
        training=file.training,
        options=file.options,
        framework=file.task.framework,
        build_model=module.build_model,
        module=module,
        _load_data=module.load_data,
    )


def check_data(data: Data, task: Task) -> None:
    """Check what `load_data` gave.

    Raises:
        TaskError: naming the column and what is wrong with it.
    """
    missing = {"x", "y", "device", "part"} - set(data)
    if missing:
        raise TaskError(f"{task.name}: load_data gave no {sorted(missing)}")
    strange = [name for name in ("x", "y", "device", "part") if not isinstance(data[name], np.ndarray)]
    if strange:
        raise TaskError(f"{task.name}: load_data must give numpy arrays; {strange} are none")
    lengths = {name: len(data[name]) for name in ("x", "y", "device", "part")}
    if len(set(lengths.values())) != 1:
        raise TaskError(f"{task.name}: load_data gave columns of different lengths: {lengths}")
    if data["x"].shape[1:] != task.input_shape or data["x"].dtype.kind not in "fiub":
        found = f"{data['x'].dtype}{data['x'].shape[1:]}"
        raise TaskError(f"{task.name}: samples are {found}, {FILE} says numbers of shape {task.input_shape}")
    y, unlabelled = data["y"], data["part"] == UNLABELLED
    if y.ndim != 1 or y.dtype.kind not in "iu" or (((y < 0) | (y >= len(task.labels))) & ~unlabelled).any():
        raise TaskError(f"{task.name}: classes must be integers from 0 to {len(task.labels) - 1}, of shape (n,)")
    if (y[unlabelled] != NO_CLASS).any():
        raise TaskError(f"{task.name}: y of the part {UNLABELLED!r} must be {NO_CLASS}; samples with a class are train")
    unknown = set(np.unique(data["part"]).tolist()) - {*PARTS, UNLABELLED}
    absent = [part for part in PARTS if not (data["part"] == part).any()]
    if unknown or absent:
        raise TaskError(f"{task.name}: parts {sorted(unknown)} are unknown, parts {absent} are empty; need {PARTS}")


def _find(ref: str) -> tuple[Path, str | None]:
    """Folder of a task, and the package name where it is one."""
    if (Path(ref) / FILE).is_file():
        return Path(ref).resolve(), None
    for point in entry_points(group=GROUP, name=ref):
        return _package_folder(point.value), point.value
    if "." in ref and "/" not in ref:
        return _package_folder(ref), ref
    known = sorted(point.name for point in entry_points(group=GROUP))
    raise TaskError(f"{ref}: neither a folder with {FILE} nor an installed task; installed are {known}")


def _package_folder(name: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError) as error:
        raise TaskError(f"{name}: no such package: {error}") from error
    if spec is None or not spec.submodule_search_locations:
        raise TaskError(f"{name}: not a package that could hold {FILE}")
    return Path(next(iter(spec.submodule_search_locations)))


def _module(path: Path, package: str | None) -> ModuleType:
    """Import the task's module: by its own name inside a package, else by the path alone."""
    try:
        if package:
            return importlib.import_module(f"{package}.{path.stem}")
        name = f"fieldfare_task_{sha256(str(path).encode()).hexdigest()[:12]}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise TaskError(f"{path}: not a Python module")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses in the module look themselves up there
        spec.loader.exec_module(module)
    except (ImportError, OSError, SyntaxError) as error:
        raise TaskError(f"{path}: cannot be imported: {error}") from error
    return module
