"""docs/reference.md against the code: every command, key, default and entry-point group, and none that is not there."""

import argparse
import json
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.main import get_command

from cloud.learning import task
from cloud.training.job import TrainSpec
from compression import recipe
from compression.evaluation_job import EvaluateSpec
from compression.gate import Gates
from compression.job import CompressSpec
from coordinator import config as coordinator_config
from coordinator.signing import signer
from edge_agent import cli as agent_cli
from edge_agent import config as agent_config

ROOT = Path(__file__).parents[3]
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
HOW_TO = "\n".join((ROOT / "docs" / name).read_text() for name in ("how-to.md", "how-to-keys.md"))


def commands() -> Iterator[str]:
    for entry in metadata.entry_points(group="fieldfare.commands"):
        found = get_command(entry.load())
        nested = getattr(found, "commands", {})
        yield from (f"fieldfare {entry.name} {name}" for name in nested)
        if not nested:
            yield f"fieldfare {entry.name}"
    yield from agent_commands("edge-agent", agent_cli._parser())


def agent_commands(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    nested = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for choices in nested:
        for word, inner in choices.items():
            yield from agent_commands(f"{name} {word}", inner)
    if not nested:
        yield name


def keys(of: type, prefix: str = "") -> dict[str, str]:
    """Key to default as the page writes it; tables of their own (`drift`, `policy`) are left out."""
    found = {}
    for field in msgspec.structs.fields(of):
        default: Any = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if not isinstance(default, msgspec.Struct):
            found[prefix + field.name] = "" if default is msgspec.NODEFAULT else f"`{json.dumps(default)}`"
    return found


def section(title: str, until: str) -> str:
    return REFERENCE.partition(title)[2].partition(until)[0]


def rows(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]*?) \|", text, re.MULTILINE))


TABLES = [
    (section("## coordinator.toml", "`[drift]`"), keys(coordinator_config.Config)),
    (section("`[drift]`", "`[policy]`"), keys(coordinator_config.Drift)),
    (section("`[policy]`", "## signer.toml"), keys(coordinator_config.Policy)),
    (section("## signer.toml", "## agent.toml"), keys(signer.Policy)),
    (section("## agent.toml", "`[updates]`"), keys(agent_config.Config)),
    (section("`[updates]`", "`[health]`"), keys(agent_config.Updates)),
    (section("`[health]`", "`[runtime]`"), keys(agent_config.Health)),
    (section("`[runtime]`", "`[api]`"), keys(agent_config.Runtime)),
    (section("`[api]`", "`[samples]`"), keys(agent_config.Api)),
    (section("`[samples]`", "`[outbox]`"), keys(agent_config.Samples)),
    (section("`[outbox]`", "`[remote]`"), keys(agent_config.Outbox)),
    (section("`[remote]`", "## Jobs"), keys(agent_config.Remote)),
    (section("`train`:", "`compress`:"), keys(TrainSpec)),
    (section("`compress`:", "`evaluate`:"), keys(CompressSpec)),
    (section("`evaluate`:", "`rounds`:"), keys(EvaluateSpec)),
    (section("## Gates", "## fieldfare.toml"), keys(Gates)),
    (
        section("## fieldfare.toml", "## Entry points"),
        {
            **keys(task._Section, "task."),
            "options": "`{}`",
            **keys(task.TransformPlan, "transform."),
            **keys(task.TrainingPlan, "training."),
        },
    ),
]


def test_every_command_has_its_row_and_no_row_is_of_another() -> None:
    named = re.findall(r"^\| `((?:fieldfare|edge-agent) [a-z -]+)` \|", REFERENCE, re.MULTILINE)
    assert sorted(named) == sorted(commands())


@pytest.mark.parametrize(("table", "expected"), TABLES)
def test_every_key_has_its_row_with_its_default(table: str, expected: dict[str, str]) -> None:
    found = rows(table)
    assert set(found) == set(expected)
    for key, default in expected.items():
        assert found[key] == default or not default, key  # one without a default says where it comes from
        assert bool(found[key].startswith("`")) == bool(default), key


def test_every_stage_of_recipes_has_its_row_and_every_parameter_with_its_default() -> None:
    section = REFERENCE.split("## Recipes", 1)[1].split("\n## ", 1)[0]
    found = dict(re.findall(r"^\| `([a-z0-9.:_-]+)` \| (?:`(.*?)`)? ?\|", section, re.MULTILINE))
    wanted = {}
    for name, kind in recipe.stage_classes().items():
        wanted[name] = ""
        for field in msgspec.structs.fields(kind):
            made = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            default = None if field.required else made
            wanted[f"{name}.{field.encode_name}"] = "" if field.required else json.dumps(msgspec.to_builtins(default))
    assert found == wanted


def test_every_entry_point_group_has_its_row() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(re.findall(r"^\| `(fieldfare\.\w+)` \|", REFERENCE, re.MULTILINE)) == set(project["entry-points"])


def test_every_job_kind_is_described() -> None:
    for entry in metadata.entry_points(group="fieldfare.jobs"):
        assert re.search(rf"^`{entry.name}`:", REFERENCE, re.MULTILINE)


def test_the_how_to_names_only_commands_that_exist() -> None:
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", HOW_TO, re.DOTALL))
    named = set(re.findall(r"\b((?:fieldfare|edge-agent) [a-z]+(?: [a-z]+)?)", blocks))
    known = set(commands())
    for name in named:
        assert name in known or name.rpartition(" ")[0] in known, name


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
