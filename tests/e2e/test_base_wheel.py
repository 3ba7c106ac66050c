"""The base wheel alone, in an empty environment: what a device gets."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = ("tensorflow", "torch", "flwr", "fastapi", "pydantic", "sqlalchemy", "keras", "ray")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(folder / "venv", with_pip=True)
    interpreter = folder / "venv" / "bin" / "python"
    wheel = next(folder.glob("*.whl"))
    install = [str(interpreter), "-m", "pip", "install", "-q", "-c", str(ROOT / "requirements.lock"), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return interpreter


@pytest.mark.slow
def test_the_agent_runs_where_no_framework_and_no_server_is_installed(python: Path, tmp_path: Path) -> None:
    agent = python.parent / "edge-agent"
    for command in ([], ["enrol"], ["run"], ["status"]):
        done = subprocess.run(
            [str(agent), *command, "--help"], check=True, capture_output=True, text=True, cwd=tmp_path
        )
        assert "usage: edge-agent" in done.stdout
    listed = subprocess.run([str(python), "-m", "pip", "list", "--format", "json"], check=True, capture_output=True)
    names = {package["name"].lower() for package in json.loads(listed.stdout)}

    assert "fieldfare" in names
    assert not names & set(FORBIDDEN)


@pytest.mark.slow
def test_what_the_base_install_lacks_is_said_in_a_sentence(python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(python.parent / "fieldfare"), "demo"], capture_output=True, text=True, cwd=tmp_path, check=False
    )

    assert done.returncode == 2
    assert "pip install 'fieldfare[coordinator]'" in done.stderr
    assert "Traceback" not in done.stderr
