"""What recipes are made of: a stage takes a model or an artifact, gives a model or an artifact, says what it did."""

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from cloud.learning.task import Task
from contract.tensors import Arrays

Form = Literal["model", "artifact"]
OnStage = Callable[[str], None]
"""Hears what begins now, as a phrase for a person."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage did.

    Attributes:
        stage: its name in recipes, `parameters` what the recipe gave it, defaults filled in.
        seconds: it took.
        deterministic: whether the same input, data and seed give the same bytes again on the same machine.
        notes: what it found out or reached: sparsity, layers that it left alone, ...
    """

    stage: str
    parameters: dict[str, Any]
    seconds: float
    deterministic: bool
    notes: dict[str, Any]


@dataclass(frozen=True)
class Workpiece:
    """What goes from stage to stage: either a model or an artifact.

    Attributes:
        model: Keras 3 or tf_keras, (batch, *input) to logits (batch, classes); it is never changed in place.
        artifact: a `.tflite`.
        records: of the stages so far, oldest first.
    """

    model: Any = None
    artifact: bytes | None = None
    records: tuple[Record, ...] = ()

    @property
    def form(self) -> Form:
        """What it is now."""
        return "model" if self.artifact is None else "artifact"

    def did(self, stage: str) -> bool:
        """Whether a stage of this name is behind it."""
        return any(record.stage == stage for record in self.records)


@dataclass(frozen=True)
class Samples:
    """Model input, float32 (n, *input), and classes (n,)."""

    x: np.ndarray
    y: np.ndarray

    def spread(self, count: int) -> np.ndarray:
        """Model input of at most so many samples, evenly spaced: data are often sorted by class."""
        return self.x[np.linspace(0, max(0, len(self.x) - 1), min(count, len(self.x))).astype(int)]


@dataclass(frozen=True)
class Workbench:
    """What every stage may use. The test samples are not here: no stage and no search may see them.

    Attributes:
        task: builds the model in any Keras.
        weights: of the version that is compressed.
        train: samples to learn from, and to show ranges of activations.
        validation: samples to choose by.
        unlabelled: further model input without classes, float32 (n, *input); None without any.
        seed: of everything that is drawn.
        on_stage: hears what begins now.
    """

    task: Task
    weights: Arrays
    train: Samples
    validation: Samples
    unlabelled: np.ndarray | None = None
    seed: int = 0
    on_stage: OnStage = field(default=lambda _phrase: None)


class _AbstractStruct(msgspec.StructMeta, abc.ABCMeta):
    """A struct that cannot be made before its abstract methods are."""


class Stage(
    msgspec.Struct, metaclass=_AbstractStruct, frozen=True, kw_only=True, tag_field="stage", forbid_unknown_fields=True
):
    """One step of a recipe. Its name is the tag; its fields are the parameters, with their limits.

    Attributes:
        takes, gives: model or artifact.
        trains: whether it learns from the training samples' classes.
        deterministic: see `Record`.
    """

    takes: ClassVar[Form] = "model"
    gives: ClassVar[Form] = "model"
    trains: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True

    @abc.abstractmethod
    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        """Do it: the new model or artifact, and notes for the record.

        Raises:
            CompressionError: it cannot be done; the message names the layer, operation or key at fault.
        """

    @property
    def name(self) -> str:
        """Its name in recipes."""
        return str(type(self).__struct_config__.tag)
