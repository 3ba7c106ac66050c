"""Recipes: stages and their parameters, from a TOML file or one that ships with this package.

The same recipe, data snapshot and seed give the same artifact bytes, unless a stage's record says that it cannot.
"""

import difflib
import importlib.resources
import re
import time
from pathlib import Path
from typing import Any, get_args

import msgspec

from cloud.errors import CloudError
from compression.errors import CompressionError, RecipeError, StageError
from compression.stage import Record, Stage, Workbench, Workpiece
from compression.stages.clustering import Cluster
from compression.stages.distillation import Distill
from compression.stages.edge_quantizer import EdgeDynamic, EdgeStatic, Mixed, WeightOnly
from compression.stages.low_rank import LowRank
from compression.stages.post_training import Dynamic, Float, Float16, Int8, Int16x8
from compression.stages.pruning import Prune
from compression.stages.qat import FineTune, Qat
from compression.stages.shrinking import FilterPrune, Width
from contract.errors import ContractError

_PostTraining = Float | Float16 | Dynamic | Int8 | Int16x8 | Mixed | WeightOnly | EdgeDynamic | EdgeStatic
AnyStage = _PostTraining | Prune | Cluster | Qat | FineTune | FilterPrune | Width | LowRank | Distill
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")
_FOLDER = importlib.resources.files("compression") / "recipes"


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done to a model, in order.

    Attributes:
        name: of the variant that it makes.
        description: for people.
        seed: of everything that its stages draw.
    """

    name: str
    stages: list[AnyStage]
    description: str = ""
    seed: int = 0

    @property
    def trains(self) -> bool:
        """Whether a stage learns from labelled samples."""
        return any(stage.trains for stage in self.stages)


def stage_classes() -> dict[str, type[Stage]]:
    """Every stage by its name in recipes."""
    return {str(kind.__struct_config__.tag): kind for kind in get_args(AnyStage)}


def ready_names() -> list[str]:
    """Names of the recipes that ship with this package."""
    return sorted(Path(entry.name).stem for entry in _FOLDER.iterdir() if entry.name.endswith(".toml"))


def load(ref: str) -> Recipe:
    """A recipe file, or a ready recipe by name.

    Raises:
        RecipeError: neither, or one that makes no sense.
    """
    path = Path(ref)
    if ref not in ready_names() and (path.suffix == ".toml" or path.is_file()):
        try:
            return parse(path.read_text(), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read: {error}") from error
    if ref not in ready_names():
        raise RecipeError(f"no recipe {ref!r}; ready ones are {', '.join(ready_names())}, or give a .toml file")
    return parse((_FOLDER / f"{ref}.toml").read_text(), f"recipe {ref}")


def parse(text: str, where: str) -> Recipe:
    """A recipe from TOML; `where` names it in errors.

    Raises:
        RecipeError: no TOML, an unknown stage or key, a value outside its limits, or stages that do not fit together.
    """
    try:
        fields = msgspec.toml.decode(text)
    except msgspec.DecodeError as error:
        raise RecipeError(f"{where}: {error}") from error
    return from_fields(fields, where)


def from_fields(fields: Any, where: str) -> Recipe:
    """A recipe from plain values, as jobs carry it.

    Raises:
        RecipeError: see `parse`.
    """
    listed = fields.get("stages", []) if isinstance(fields, dict) else []
    for index, entry in enumerate(listed if isinstance(listed, list) else []):
        given = entry.get("stage") if isinstance(entry, dict) else None
        if not isinstance(given, str) or given not in stage_classes():
            near = difflib.get_close_matches(str(given), stage_classes(), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(stage_classes()))}"
            raise RecipeError(f"{where}: stages[{index}]: unknown stage {given!r}{hint}")
    try:
        recipe = msgspec.convert(fields, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{where}: {error}") from error
    _check(recipe, where)
    return recipe


def _check(recipe: Recipe, where: str) -> None:
    if not _NAME.fullmatch(recipe.name) or ".." in recipe.name:
        raise RecipeError(f"{where}: name {recipe.name!r}: use 1 to 63 lower-case letters, digits and inner '.', '-'")
    if not 0 <= recipe.seed < 2**32:
        raise RecipeError(f"{where}: seed {recipe.seed} is outside 0 to 4294967295")
    form = "model"
    for index, stage in enumerate(recipe.stages):
        if stage.takes != form:
            raise RecipeError(
                f"{where}: stages[{index}]: {stage.name} takes {_a(stage.takes)}, here it would get {_a(form)}"
            )
        form = stage.gives
    if form != "artifact":
        raise RecipeError(f"{where}: the last stage must give an artifact; end with int8 or float, for example")


def _a(form: str) -> str:
    return "a model" if form == "model" else "an artifact"


def make(recipe: Recipe, piece: Workpiece, bench: Workbench) -> Workpiece:
    """Run a recipe's stages.

    Args:
        recipe: checked.
        piece: the model to begin with, holding the version's weights.
        bench: data, task and seed.

    Raises:
        CompressionError: a stage cannot do it.
    """
    for stage in recipe.stages:
        piece = run_stage(stage, piece, bench)
    return piece


def run_stage(stage: Stage, piece: Workpiece, bench: Workbench) -> Workpiece:
    """One stage, and its record.

    Raises:
        CompressionError: it cannot do it; what a library raises of its own becomes a StageError.
    """
    begun = time.monotonic()
    try:
        made, notes = stage.run(piece, bench)
    except (CompressionError, CloudError, ContractError):
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:300]
        raise StageError(f"stage {stage.name}: {type(error).__name__}: {reason}") from error
    parameters = msgspec.to_builtins(stage)
    record = Record(
        stage=parameters.pop("stage"),
        parameters=parameters,
        seconds=round(time.monotonic() - begun, 3),
        deterministic=stage.deterministic,
        notes=notes,
    )
    records = (*piece.records, record)
    return Workpiece(model=made, records=records) if stage.gives == "model" else Workpiece(None, made, records)
