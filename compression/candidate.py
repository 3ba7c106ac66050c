"""Variants before they are registered: made by recipes, kept in the job's folder for an attempt after a kill."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from compression import recipe
from compression.errors import CompressionError
from compression.measure import Report
from compression.recipe import Recipe
from compression.source import Source
from compression.stage import OnStage, Record, Samples, Workbench, Workpiece

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """An artifact, what made it, and what was measured of it."""

    recipe: Recipe
    content: bytes
    records: Sequence[Record]
    report: Report

    @property
    def name(self) -> str:
        """Of the variant."""
        return self.recipe.name

    @property
    def sha256(self) -> str:
        """Digest of the artifact."""
        return hashlib.sha256(self.content).hexdigest()


class _Kept(msgspec.Struct, frozen=True):
    recipe: Recipe
    records: list[Record]
    sha256: str


def bench(origin: Source, *, seed: int, on_stage: OnStage) -> Workbench:
    """What the stages of a recipe may use of a source; never its test samples."""
    return Workbench(
        task=origin.task,
        weights=origin.weights,
        train=Samples(origin.train.x, origin.train.y),
        validation=Samples(origin.validation.x, origin.validation.y),
        unlabelled=origin.unlabelled,
        seed=seed,
        on_stage=on_stage,
    )


def make(which: Recipe, model: Any, origin: Source, folder: Path, on_stage: OnStage) -> tuple[bytes, list[Record]]:
    """The artifact of a recipe, or the one that an earlier attempt of this job left whole in `folder`.

    Args:
        which: recipe.
        model: Keras model that holds the source's weights.
        origin: the source.
        folder: of the job.
        on_stage: hears what begins now.

    Raises:
        CompressionError: a stage cannot do it; the message begins with the recipe's name.
    """
    artifact, note = folder / f"{which.name}.tflite", folder / f"{which.name}.json"
    if note.exists():
        kept = msgspec.json.decode(note.read_bytes(), type=_Kept)
        content = artifact.read_bytes() if artifact.exists() else b""
        if kept.recipe == which and hashlib.sha256(content).hexdigest() == kept.sha256:
            logger.info("%s was made by an earlier attempt", which.name)
            return content, kept.records
    try:
        made = recipe.make(which, Workpiece(model), bench(origin, seed=which.seed, on_stage=on_stage))
    except CompressionError as error:
        raise type(error)(f"recipe {which.name}: {error}") from error
    content = made.artifact or b""
    write(artifact, content)
    kept = _Kept(which, list(made.records), hashlib.sha256(content).hexdigest())
    write(note, msgspec.json.encode(kept))
    return content, kept.records


def write(path: Path, content: bytes) -> None:
    """Write a file that is whole or not there."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)
