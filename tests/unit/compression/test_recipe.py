"""Recipes: what is refused, and by which words."""

import pytest

from compression import recipe
from compression.errors import RecipeError


def text(*stages: str, name: str = "mine", head: str = "") -> str:
    return f'name = "{name}"\n{head}\n' + "".join(f"[[stages]]\n{stage}\n" for stage in stages)


@pytest.mark.parametrize("name", recipe.ready_names())
def test_every_ready_recipe_can_be_loaded_under_its_own_name(name: str) -> None:
    found = recipe.load(name)
    assert found.name == name
    assert found.description


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (text('stage = "prun"'), r"r.toml: stages\[0\]: unknown stage 'prun'; did you mean 'prune'"),
        (text('stage = "zzz"'), "unknown stage 'zzz'; there are .*cluster"),
        (text("sparsity = 0.5"), "unknown stage None"),
        (text('stage = ["int8"]'), r"unknown stage \['int8'\]"),
        (text('stage = "prune"\nsparsty = 0.5', 'stage = "int8"'), r"sparsty.*stages\[0\]"),
        (text('stage = "prune"\nsparsity = 1.5', 'stage = "int8"'), r"`float` < 1.*stages\[0\].sparsity"),
        (text('stage = "prune"'), "the last stage must give an artifact"),
        (text('stage = "int8"', 'stage = "prune"'), r"stages\[1\]: prune takes a model, here it would get an artifact"),
        (text('stage = "int8"', name="My recipe"), "name 'My recipe'"),
        (text('stage = "int8"', head="seed = -1"), "seed -1"),
        (text('stage = "int8"', head="seeds = 1"), "seeds"),
        ("name = ", "r.toml: "),
        ("stages = 3", "r.toml: "),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_with_the_key_at_fault(given: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe.parse(given, "r.toml")


def test_an_unknown_recipe_is_refused_with_those_that_exist() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'magic'; ready ones are .*int8"):
        recipe.load("magic")


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(RecipeError, match=r"nowhere.toml: cannot be read"):
        recipe.load("nowhere.toml")


def test_a_name_that_the_registry_would_refuse_is_refused_before_anything_is_made() -> None:
    with pytest.raises(RecipeError, match="name"):
        recipe.from_fields({"name": "a..b", "stages": [{"stage": "int8"}]}, "test")
