"""The install script for real, into folders of the test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user, which only root can"),
]


def test_the_script_installs_an_agent_and_a_unit_that_systemd_understands(tmp_path: Path) -> None:
    units, programs = tmp_path / "units", tmp_path / "bin"
    units.mkdir()
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    command = ["sh", ROOT / "packaging" / "install.sh", "--package", wheel, "--user", "nobody"]
    command += ["--prefix", tmp_path / "prefix", "--state", tmp_path / "state", "--programs", programs]
    command += ["--units", units, "--python", "/usr/bin/python3.11" if _has_venv() else sys.executable]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PIP_CONSTRAINT": _lock()})
    helped = subprocess.run([programs / "edge-agent", "--help"], check=True, capture_output=True, text=True, env={})
    assert "usage: edge-agent" in helped.stdout
    state = (tmp_path / "state").stat()
    assert (state.st_mode & 0o777, state.st_uid != 0) == (0o700, True)
    unit = (units / "fieldfare-agent.service").read_text()
    assert f"ReadWritePaths={tmp_path}/state\n" in unit  # everything else is read-only to the agent
    assert "StateDirectory" not in unit
    assert f"ExecStart={tmp_path}/prefix/bin/edge-agent run --state {tmp_path}/state --log journal\n" in unit
    assert "User=nobody\n" in unit


def _has_venv() -> bool:
    return (
        subprocess.run(["/usr/bin/python3.11", "-c", "import ensurepip"], check=False, capture_output=True).returncode
        == 0
    )


def _lock() -> str:
    return str(ROOT / "requirements.lock")
