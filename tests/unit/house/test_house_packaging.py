"""The files that put the agent onto a device."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.doctor import checks
from tests.fakes import system_calls

ROOT = Path(__file__).parents[3]
UNIT = ROOT / "packaging" / "systemd" / "fieldfare-agent.service"
PAGE = ROOT / "docs" / "devices.md"


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, starting this environment's agent: `verify` looks for the program."""
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace("/usr/bin/edge-agent", str(Path(sys.executable).with_name("edge-agent"))))
    return path


@pytest.mark.systemd
def test_the_unit_is_one_that_systemd_understands_to_the_last_key(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.systemd
def test_a_key_that_systemd_does_not_know_would_be_found(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("MemoryMax", "MemoryMaximum"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert "Unknown key 'MemoryMaximum'" in done.stderr


@pytest.mark.systemd
def test_the_drop_ins_of_the_documentation_are_understood_with_the_unit(unit: Path) -> None:
    drop_ins = re.findall(r"```ini\n(\[Service\].*?)```", PAGE.read_text(), re.DOTALL)
    assert len(drop_ins) == 1
    folder = unit.with_name(f"{unit.name}.d")
    folder.mkdir()
    (folder / "devices.conf").write_text(drop_ins[0])
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "PrivateDevices=no" in drop_ins[0].splitlines()


@pytest.mark.systemd
def test_the_unit_is_hardened_as_the_documentation_says(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (score,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert float(score) <= 1.5
    assert f"gives it {score} " in PAGE.read_text()


def test_the_unit_starts_a_user_of_its_own_that_can_gain_nothing() -> None:
    lines = set(UNIT.read_text().splitlines())
    wanted = {"User=fieldfare", "NoNewPrivileges=yes", "ProtectSystem=strict", "MemoryMax=384M", "Type=notify"}
    assert wanted | {"CapabilityBoundingSet=", "WatchdogSec=120", "UMask=0077"} <= lines


@pytest.mark.systemd
def test_the_unit_lets_self_tests_and_training_lower_their_priority() -> None:
    allowed = system_calls.allowed()
    assert {"setpriority", "execve", "fsync", "renameat"} <= allowed
    assert not {"mount", "chroot", "setuid", "ptrace", "init_module", "reboot", "bpf", "setrlimit"} & allowed


_WITHOUT_WRITABLE_CODE = """
import ctypes, sys
if ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN; Linux 6.3
    sys.exit(77)
import numpy as np
from contract.bundle import unpack
from edge_agent.runtime_backend import RuntimeOptions
from edge_agent.selftest import compare
from edge_agent.serving import Model
from tests.fakes import agent_bundles
data = agent_bundles.make()
bundle = unpack(data)
compare(Model(agent_bundles.ref(data), bundle, RuntimeOptions(threads=2)), bundle)
import cryptography.hazmat.primitives.asymmetric.ec, edge_agent.daemon, tuf.ngclient
print("fine")
"""


def test_the_agent_needs_no_memory_that_is_both_written_and_run() -> None:
    """MemoryDenyWriteExecute in the unit, as the kernel enforces it."""
    command = [sys.executable, "-c", _WITHOUT_WRITABLE_CODE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


INSTALL = ROOT / "packaging" / "install.sh"
SCRIPTS = [INSTALL, *(ROOT / "packaging" / "debian" / name for name in ("postinst", "prerm", "postrm"))]


@pytest.mark.shellcheck
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing_in_the_scripts(script: Path) -> None:
    done = subprocess.run(["shellcheck", "--shell=sh", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_dry_run_says_every_step_and_does_none(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("prefix", "state", "programs")}
    options = [word for name, path in places.items() for word in (f"--{name}", str(path))]
    command = ["sh", INSTALL, "--dry-run", "--units", tmp_path, "--user", "fieldfare-test", *options]
    command += ["--python", sys.executable, "--package", "x.whl"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for step in ("useradd", "-m venv", "-m pip install", "install -d -m 0700", "would write: ", "enrol this device"):
        assert step in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--wat"], "no option --wat"),
        (["--prefix"], "--prefix needs a value"),
        (["--dry-run", "--python", "no-such-python"], "no-such-python is not installed"),
        (["--dry-run", "--python", "false"], "Fieldfare needs Python 3.11 to 3.13"),
    ],
)
def test_what_the_install_script_cannot_do_is_a_sentence(options: list[str], said: str) -> None:
    done = subprocess.run(["sh", INSTALL, *options], capture_output=True, text=True, check=False)
    assert done.returncode in {1, 2}
    assert said in done.stderr


def test_the_table_of_wheels_is_about_the_locked_versions() -> None:
    page = PAGE.read_text()
    named = dict(re.findall(r"^\| ([a-z0-9-]+) (\d[\w.]*) \| (?:any|none|manylinux)", page, re.MULTILINE))
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert len(named) == 17
    assert named == {name: locked[name] for name in named}, "run packaging/wheels.py again"


def test_the_page_about_devices_names_every_check_of_the_doctor() -> None:
    table = PAGE.read_text().partition("| check | looks at |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [name for name, _ in checks.ALL]
