"""Recipes: which variants are made of a version.

`full` needs the data that the weights were trained on. `post-training` only turns given weights into other numbers,
so it fits federated versions, whose data never left the devices: fine-tuning those on the laboratory's samples would
make them forget what the devices taught them.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from cloud.learning import weights
from compression.errors import RecipeError
from compression.prune import PrunePlan, prune_and_cluster
from compression.source import Source

FLOAT = "float"
INT8 = "int8"
PRUNED = "pruned-clustered-int8"
RECIPES = {"full": (FLOAT, INT8, PRUNED), "post-training": (FLOAT, INT8)}

OnStage = Callable[[str], None]


def check(recipe: str) -> tuple[str, ...]:
    """Names of a recipe's variants.

    Raises:
        RecipeError: no such recipe.
    """
    if recipe not in RECIPES:
        raise RecipeError(f"no recipe {recipe!r}; there are {', '.join(sorted(RECIPES))}")
    return RECIPES[recipe]


def plan(options: Mapping[str, Any]) -> PrunePlan:
    """The pruning plan, with an operator's changes.

    Raises:
        RecipeError: an option that does not exist or makes no sense.
    """
    try:
        found = msgspec.convert(dict(options), PrunePlan, strict=True)
    except msgspec.ValidationError as error:
        raise RecipeError(f"options of pruning: {error}") from error
    rules = {
        "sparsity must be in (0, 1)": 0 < found.sparsity < 1,
        "clusters must be 2 or more": found.clusters >= 2,
        "epochs must be 1 or more": found.prune_epochs >= 1 and found.cluster_epochs >= 1,
        "learning_rate must be above 0": 0 < found.learning_rate < math.inf,
        "seed must be 0 or more": 0 <= found.seed < 2**32,
    }
    broken = [rule for rule, kept in rules.items() if not kept]
    if broken:
        raise RecipeError(f"options of pruning: {'; '.join(broken)}")
    return found


def make(recipe: str, source: Source, model: Any, pruning: PrunePlan, *, on_stage: OnStage) -> dict[str, bytes]:
    """The recipe's artifacts by name.

    Args:
        recipe: its name.
        source: weights, data and transform.
        model: Keras 3 model of the task; it is given the source's weights.
        pruning: used by `full`.
        on_stage: called when a stage begins, with a phrase for a person.

    Raises:
        CompressionError: see `check`, `convert` and `prune`.
    """
    from compression import convert

    names = check(recipe)
    weights.put(model, source.weights)
    on_stage("converting to float")
    made = {FLOAT: convert.to_float(model)}
    on_stage("quantizing to int8")
    made[INT8] = convert.to_int8(model, source.train.x)
    if PRUNED in names:
        sparse = prune_and_cluster(
            source.task, source.weights, source.train.x, source.train.y, pruning, on_stage=on_stage
        )
        on_stage("quantizing the pruned model to int8")
        made[PRUNED] = convert.to_int8(sparse, source.train.x)
    return made
