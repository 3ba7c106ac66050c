"""What a trial may be: chains of the stages that there are, always a valid recipe.

The space is read off `recipe.stage_classes()`: an option whose stage or parameter does not exist is left out.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import msgspec
import numpy as np

from compression import recipe
from compression.recipe import Recipe
from compression.search import sensitivity
from compression.search.sensitivity import LayerLoss

Params = dict[str, Any]
Value = bool | int | float | str


class Suggest(Protocol):
    """What draws: an Optuna trial."""

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:
        """One of them."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        """A number between two, in steps."""


@dataclass(frozen=True)
class Steps:
    """Numbers from `low` to `high` by `step`; `start` is what single techniques are tried with."""

    low: float
    high: float
    step: float
    start: float


@dataclass(frozen=True)
class Option:
    """A stage that a trial may have.

    Attributes:
        stage: its name.
        fields: parameters that are searched: numbers, or values of which the first is what single techniques get.
        spares: the parameter of which layers that the technique would cost too much get a milder value, by the stage's
            parameter `layers`; empty where that is not searched.
        looked: technique and level of the sensitivity that says which layers those are.
        last: the stages one of which must follow it directly; empty is any.
        alone: whether it is a technique that makes anything smaller by itself.
    """

    stage: str
    fields: Mapping[str, Steps | tuple[Value, ...]] = field(default_factory=dict)
    spares: str = ""
    looked: tuple[str, float] = ("sparsity", 0.5)
    last: tuple[str, ...] = ()
    alone: bool = True


# In the order of a recipe: first what changes the shape, then the values, then what prepares for integers.
OPTIONS = (
    Option("filter-prune", {"keep": Steps(0.25, 0.9, 0.05, 0.6)}, spares="keep"),
    Option("low-rank", {"energy": Steps(0.6, 0.98, 0.02, 0.9)}),
    Option("distill", alone=False),
    Option("prune", {"sparsity": Steps(0.4, 0.96, 0.04, 0.8)}),
    Option("cluster", {"clusters": (16, 4, 8, 32, 64)}),
    Option("qat", last=("int8",)),
)
_INT4 = {"bits": 4}
FINISHES: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "int8": ({"stage": "int8"},),
    "dynamic": ({"stage": "dynamic"},),
    "float16": ({"stage": "float16"},),
    "int4-dense": ({"stage": "float"}, {"stage": "mixed"}),  # by its defaults: four bits where they are fast
    "int4": ({"stage": "float"}, {"stage": "mixed", "rules": [_INT4]}),
}
LARGE = ("float16",)  # tried alone, not drawn: hardly a budget needs it
FINISH = "finish"


@dataclass(frozen=True)
class Space:
    """What exists here.

    Attributes:
        options: in the order of a recipe.
        finishes: stages from a model to an artifact, by name; the first is what techniques alone end with.
        spared: layers that an option spares, by its stage.
    """

    options: tuple[Option, ...]
    finishes: Mapping[str, Sequence[Mapping[str, Any]]]
    spared: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def drawn(self) -> tuple[str, ...]:
        """Finishes that are drawn."""
        return tuple(name for name in self.finishes if name not in LARGE)


def build(losses: list[LayerLoss], *, trains: bool = True, filters: Collection[str] | None = None) -> Space:
    """The space of a model.

    Args:
        losses: its sensitivity.
        trains: whether stages that train are allowed; they are not for versions that come from devices.
        filters: layers that may keep filters of their own; None is all.
    """
    kinds = recipe.stage_classes()
    options, spared = [], {}
    for option in OPTIONS:
        kind = kinds.get(option.stage)
        if kind is None or (kind.trains and not trains):
            continue
        known = kind.__struct_fields__
        options.append(replace(option, fields={name: of for name, of in option.fields.items() if name in known}))
        fragile = sensitivity.fragile(losses, *option.looked)
        layers = tuple(layer for layer in fragile if filters is None or layer in filters)
        if option.spares in known and "layers" in known and layers:
            spared[option.stage] = layers
    chains = {**FINISHES, **_sparing(losses)}
    finishes = {name: of for name, of in chains.items() if all(stage["stage"] in kinds for stage in of)}
    return Space(tuple(options), finishes, spared)


def _sparing(losses: list[LayerLoss]) -> dict[str, tuple[Mapping[str, Any], ...]]:
    """Four bits for all layers but those that they cost too much; nothing where that is all layers, or none."""
    spared = sensitivity.fragile(losses, "bits", 4)
    if not spared or len(spared) == len({loss.layer for loss in losses}):
        return {}
    # Keras numbers names of layers: `fashion_1/edges_1/convolution`.
    rules = [_INT4, *({"layers": rf"(^|[/;]){re.escape(layer)}(_\d+)?/"} for layer in spared)]
    return {"int4-sparing": ({"stage": "float"}, {"stage": "mixed", "rules": rules})}


def draw(space: Space, suggest: Suggest) -> Params:
    """Parameters of a trial; what is off draws nothing further."""
    params: Params = {}
    last = space.drawn
    for option in space.options:
        params[option.stage] = suggest.suggest_categorical(option.stage, [False, True])
        if not params[option.stage]:
            continue
        for name, of in option.fields.items():
            params[f"{option.stage}.{name}"] = _value(f"{option.stage}.{name}", of, suggest)
        if option.stage in space.spared:
            name = f"{option.stage}.spare"
            params[name] = suggest.suggest_categorical(name, [False, True])
        last = option.last or last
    if len(last) > 1:
        params[FINISH] = suggest.suggest_categorical(FINISH, list(last))
    return params


def _value(name: str, of: Steps | tuple[Value, ...], suggest: Suggest) -> Value:
    if isinstance(of, Steps):
        return round(suggest.suggest_float(name, of.low, of.high, step=of.step), 6)
    return cast(Value, suggest.suggest_categorical(name, list(of)))


def make(space: Space, params: Params, *, epochs: int, name: str, seed: int) -> Recipe:
    """The recipe that parameters stand for.

    Args:
        space: they were drawn from.
        params: see `draw`.
        epochs: of every stage that trains.
        name, seed: of the recipe.
    """
    stages: list[dict[str, Any]] = []
    last = space.drawn
    for option in space.options:
        if not params.get(option.stage):
            continue
        fields = {of: params[f"{option.stage}.{of}"] for of in option.fields}
        if params.get(f"{option.stage}.spare"):
            milder = round(float(np.sqrt(fields[option.spares])), 4)  # of the part that stays
            fields["layers"] = dict.fromkeys(space.spared[option.stage], milder)
        stages.append({"stage": option.stage, **fields})
        last = option.last or last
    finish = params.get(FINISH, last[0])
    stages.extend(dict(stage) for stage in space.finishes[finish])
    made = recipe.from_fields({"name": name, "seed": seed, "stages": stages}, "search")
    return retimed(made, epochs)


def retimed(which: Recipe, epochs: int) -> Recipe:
    """The recipe with so many epochs in every stage that trains."""
    stages = [
        msgspec.structs.replace(stage, epochs=epochs) if "epochs" in stage.__struct_fields__ else stage
        for stage in which.stages
    ]
    return msgspec.structs.replace(which, stages=stages)


def family(which: Recipe) -> str:
    """The same for recipes that differ in their name and in epochs alone."""
    return msgspec.json.encode(retimed(which, 1).stages).decode()


def singles(space: Space) -> list[Params]:
    """Every technique alone, with its first choice: what the search must beat."""
    off: Params = dict.fromkeys((option.stage for option in space.options), False)
    found: list[Params] = [off | {FINISH: finish} for finish in space.finishes]
    for option in (option for option in space.options if option.alone):
        fields = {
            f"{option.stage}.{name}": of.start if isinstance(of, Steps) else of[0] for name, of in option.fields.items()
        }
        spare = {f"{option.stage}.spare": False} if option.stage in space.spared else {}
        found.append(off | {option.stage: True} | fields | spare | {FINISH: (option.last or space.drawn)[0]})
    return found


def words(which: Recipe) -> str:
    """A recipe in one line for people: `prune sparsity 0.8, cluster clusters 16, int8`; epochs left out."""
    return ", ".join(_stage_words(stage) for stage in which.stages)


def _stage_words(stage: Any) -> str:
    fields = msgspec.to_builtins(stage)
    name, known = fields.pop("stage"), {option.stage: option.fields for option in OPTIONS}
    shown = [f"{key} {fields[key]}" for key in known.get(name, {}) if key in fields]
    if name == "mixed":
        shown = ["/".join(dict.fromkeys(f"int{rule['bits']}" for rule in fields["rules"]))]
    return " ".join([name, *shown])
