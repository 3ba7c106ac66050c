"""What a fresh interpreter has loaded; a linter cannot see what importlib or a dependency drags in."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import compression

ROOT = Path(__file__).parents[3]
PACKAGES = ("cloud", "compression", "contract", "coordinator", "edge_agent", "fieldfare", "simulations")
FRAMEWORKS = {"tensorflow", "tf_keras", "keras", "torch", "jax", "flwr", "ray", "sklearn", "scipy", "matplotlib"}
SERVERS = {"fastapi", "pydantic", "sqlalchemy", "uvicorn", "amqtt", "httpx", "typer", "rich"}


def loaded_by(code: str) -> set[str]:
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return {name.partition(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_loads_no_framework_and_no_server(package: str) -> None:
    assert not (FRAMEWORKS | SERVERS) & loaded_by(f"import {package}")


def test_the_agents_help_loads_nothing_that_a_device_must_not_have() -> None:
    loaded = loaded_by("import sys; sys.argv = ['edge-agent', '--help']; from edge_agent.cli import main; main()")

    assert "edge_agent" in loaded
    assert not (FRAMEWORKS | SERVERS) & loaded


def test_the_help_of_the_command_line_loads_no_framework_and_no_server() -> None:
    loaded = loaded_by("import sys; sys.argv = ['fieldfare', '--help']; from fieldfare.cli import main; main()")

    assert "typer" in loaded
    assert not (FRAMEWORKS | SERVERS - {"typer", "rich"}) & loaded


def test_compression_is_ours_and_not_the_standard_librarys() -> None:
    assert Path(compression.__file__).is_relative_to(ROOT)


def test_every_registered_command_job_and_task_can_be_loaded() -> None:
    from importlib import metadata

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for group in ("fieldfare.commands", "fieldfare.jobs", "fieldfare.tasks"):
        names = {entry.name: entry for entry in metadata.entry_points(group=group)}
        assert set(names) == set(project["entry-points"][group])
        for entry in names.values():
            assert entry.load()


def test_the_project_speaks_of_itself_alone() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    words = ["/wo" + "rk/", "pypi." + "org", "/tmp/ba" + "sh", "files.python" + "hosted"]
    for name in listing.split():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".lock", ".sh", ""} and path.is_file():
            text = path.read_text(errors="replace")
            assert not [word for word in words if word in text], name
