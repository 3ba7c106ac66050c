"""The Debian package, unpacked: small, whole, and an agent that serves and trains with nothing else around it."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import messages
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_coordinator import AgentProcess, Coordinator
from tests.fakes.broker_process import BrokerProcess

ROOT = Path(__file__).parents[2]
HOME = Path("usr/lib/fieldfare-agent")
MOST_BYTES = 100_000_000  # installed, with the modules that the package compiles on the device
NOBODY = 65534
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("dpkg-deb") is None or not Path("/usr/bin/python3.11").exists(),
        reason="needs dpkg-deb and Debian's own Python 3.11",
    ),
]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deb")
    command = [sys.executable, str(ROOT / "packaging" / "build_deb.py"), "--out", str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def root(package: Path) -> Iterator[Path]:
    """The package as dpkg would lay it out, in a folder that any user may read."""
    folder = Path(tempfile.mkdtemp(prefix="fieldfare-deb-"))
    folder.chmod(0o755)
    subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    compiling = [folder / HOME / "bin" / "python3", "-I", "-m", "compileall", "-q", folder / HOME / "lib"]
    subprocess.run(compiling, check=True, env={})
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def python(root: Path) -> str:
    return str(root / HOME / "bin" / "python3")


def test_the_package_is_small_with_its_compiled_modules_too(root: Path) -> None:
    size = sum(path.lstat().st_size for path in root.rglob("*") if not path.is_dir())
    assert size <= MOST_BYTES


def test_the_package_says_what_it_needs_and_keeps_the_owners_settings(package: Path) -> None:
    fields = subprocess.run(["dpkg-deb", "-f", package], check=True, capture_output=True, text=True).stdout
    assert "Package: fieldfare-agent\n" in fields
    assert "Depends: python3 (>= 3.11), python3 (<< 3.12), libc6" in fields
    listed = subprocess.run(["dpkg-deb", "-c", package], check=True, capture_output=True, text=True).stdout
    assert all(line.split()[1] == "root/root" for line in listed.splitlines())
    for path in ("./etc/default/fieldfare-agent", "./usr/bin/edge-agent", "./usr/share/doc/fieldfare-agent/copyright"):
        assert path in listed


def test_nothing_in_the_package_is_writable_by_others(root: Path) -> None:
    for path in root.rglob("*"):
        if not path.is_symlink():
            assert not stat.S_IMODE(path.lstat().st_mode) & 0o022, path


def test_the_same_files_give_the_same_package(package: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "packaging" / "build_deb.py"), "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / package.name).read_bytes() == package.read_bytes()


def test_a_foreign_architecture_needs_its_wheels(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "packaging" / "build_deb.py"), "--wheels", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "holds 0 wheels of ai-edge-litert" in done.stderr


def test_the_help_runs_with_nothing_of_this_environment(root: Path, python: str) -> None:
    code = "import sys; print('\\n'.join(sys.path)); from edge_agent.cli import main; main(['--help'])"
    done = subprocess.run([python, "-I", "-c", code], check=True, capture_output=True, text=True, env={}, cwd="/")
    assert "usage: edge-agent" in done.stdout
    places = done.stdout.partition("usage:")[0].split()
    assert all(place.startswith((str(root), "/usr/lib/python3")) for place in places), places
    assert (root / "usr/bin/edge-agent").read_text().startswith("#!/usr/lib/fieldfare-agent/bin/python3 -I\n")


def test_the_command_knows_the_settings_of_the_service_for_the_services_folder_alone(
    root: Path, python: str, tmp_path: Path
) -> None:
    (tmp_path / "default").write_text('# words\nFIELDFARE_AGENT_HELLO_S="7"\nFIELDFARE_AGENT_THREADS=2\n')
    script = tmp_path / "edge-agent"
    text = (root / "usr/bin/edge-agent").read_text()
    script.write_text(text.replace('"/etc/default/fieldfare-agent"', repr(str(tmp_path / "default"))))
    for place, expected in (("var/lib/fieldfare-agent", (7.0, 3)), ("elsewhere", (10.0, 3))):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "agent.toml").write_text('device = "meter-1"\nbroker_host = "127.0.0.1"\nbroker_port = 1\n')
        command = [python, "-I", script, "config", "check", "--state", folder, "--json"]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={"FIELDFARE_AGENT_THREADS": "3"}, cwd="/"
        )
        values = json.loads(done.stdout)["values"]
        assert (values["hello_s"]["value"], values["threads"]["value"]) == expected


def test_an_agent_from_the_package_verifies_serves_and_trains_without_being_root(root: Path, python: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="fieldfare-deb-agent-"))
    folder.chmod(0o755)
    broker = BrokerProcess(folder / "broker", "embedded")
    coordinator = Coordinator(broker)
    agent = AgentProcess(coordinator, folder / "agent", "meter-1")
    agent.python, agent.options = [python, "-P"], {"env": {}, "cwd": "/"}
    if os.geteuid() == 0:
        _give(folder / "agent", NOBODY)
        agent.options |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    try:
        _live(coordinator, agent, python, folder)
    finally:
        agent.stop()
        coordinator.stop()
        broker.stop()
        shutil.rmtree(folder)


def _live(coordinator: Coordinator, agent: AgentProcess, python: str, folder: Path) -> None:
    agent.start()
    data = agent_bundles.make()
    ref = coordinator.publish(data)
    coordinator.desire("meter-1", ref)
    (receipt,) = agent.wait(lambda: coordinator.receipts(agent.certificate), 60)
    assert (receipt.outcome, receipt.reason) == ("activated", "")
    x, y = agent_models.samples(60, seed=1)
    agent.feed("001", x, y)
    agent.wait(lambda: coordinator.samples() >= 60, 60)
    coordinator.instruct("meter-1", ref.sha256, agent_models.weights(), epochs=1)
    (reply,) = agent.wait(lambda: coordinator.bodies(messages.RoundReply), 120)
    assert (reply.error, reply.examples) == ("", 60)
    command = [python, "-I", "-m", "edge_agent", "doctor", "--state", str(folder / "agent")]
    doctor = subprocess.run(command, capture_output=True, text=True, check=False, **agent.options)
    assert "golden vectors hold" in doctor.stdout, doctor.stdout + doctor.stderr
    assert "could not be checked" not in doctor.stdout
    assert agent.stop() == 0
    assert "Traceback" not in agent.log.read_text()


def _give(folder: Path, user: int) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, user, user)
