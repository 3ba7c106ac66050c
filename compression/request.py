"""What the command line asks a compress job for, checked before a job is made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from compression import gate, recipe
from compression.errors import RecipeError
from compression.lanes import onnx
from compression.report.content import Content
from compression.search import budget
from coordinator.client import Client


def spec(
    client: Client,
    named: str,
    *,
    recipes: Sequence[str],
    search: dict[str, Any] | None,
    gates: Path | None,
    task: str,
    hardware_classes: Sequence[str],
) -> dict[str, Any]:
    """The specification of a compress job.

    Args:
        client: of the coordinator.
        named: MODEL:VERSION, or MODEL for its newest version.
        recipes: ready names or files; they travel whole, so that the job does not need the files.
        search: fields of `compression.job.SearchSpec`; then no recipe is followed unless one is given.
        gates: TOML file of what must hold beside the model's own.
        task, hardware_classes: as in `compression.job.CompressSpec`.

    Raises:
        RecipeError: a version, a recipe or gates that make no sense.
        ClientError: no such model.
    """
    model, version = model_version(client, named)
    fields: dict[str, Any] = {"model": model, "version": version, "task": task}
    if recipes:
        fields["recipes"] = [msgspec.to_builtins(recipe.load(ref)) for ref in recipes]
    if search is not None:
        budget.parse(search["budget"])
        fields |= {"search": search, "recipes": fields.get("recipes", [])}
    if gates is not None:
        fields["gates"] = msgspec.to_builtins(gate.load(gates))
    if hardware_classes:
        fields["hardware_classes"] = list(hardware_classes)
    return fields


def model_version(client: Client, named: str) -> tuple[str, int]:
    """Name and number of MODEL:VERSION; without a version, the newest.

    Raises:
        RecipeError: no such model, no number, or an ONNX file in place of a model.
    """
    if named.endswith(".onnx"):
        raise RecipeError(onnx.no_way_in(named))
    model, _, number = named.partition(":")
    if number and not number.isdecimal():
        raise RecipeError(f"{named}: give MODEL:VERSION, for example {model}:1")
    if number:
        return model, int(number)
    found = next((each for each in client.models() if each.name == model), None)
    if found is None or not found.versions:
        raise RecipeError(f"no model {model!r} in the registry; see: fieldfare models list")
    return model, found.versions[-1]


def content_of(client: Client, result: dict[str, Any]) -> Content:
    """What a job's report is made from."""
    return msgspec.json.decode(client.get_blob(result["report"]["content"]), type=Content)
