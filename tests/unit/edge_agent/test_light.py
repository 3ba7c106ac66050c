"""The agent stays light: what a fresh interpreter has loaded after the help, and after the daemon's imports."""

import subprocess
import sys

import pytest

HEAVY = ["torch", "tensorflow", "keras", "tf_keras", "jax", "flwr", "ray"]
HEAVY += ["fastapi", "pydantic", "sqlalchemy", "httpx", "typer", "rich"]
ONLY_IN_CHILDREN = ["tuf", "cryptography", "securesystemslib", "urllib3"]


def _loaded(code: str) -> set[str]:
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stderr.split()}


def test_help_loads_nothing_heavy_and_not_even_numpy() -> None:
    loaded = _loaded("from edge_agent.cli import main; main(['--help'])")
    assert loaded.isdisjoint([*HEAVY, *ONLY_IN_CHILDREN, "numpy", "paho", "ai_edge_litert"])


def test_the_daemon_loads_nothing_heavy_and_leaves_tuf_and_cryptography_to_its_children() -> None:
    loaded = _loaded("import edge_agent.daemon, ai_edge_litert.interpreter")
    assert loaded.isdisjoint([*HEAVY, *ONLY_IN_CHILDREN])


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["enrol", "--help"],
        ["run", "--help"],
        ["status", "--help"],
        ["doctor", "--help"],
        ["diagnostics", "--help"],
        ["config", "--help"],
        ["config", "check", "--help"],
    ],
)
def test_every_command_explains_itself(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "edge_agent", *command], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: edge-agent")
    assert " ".join(["  edge-agent", *(word for word in command if word != "--help")]) in done.stdout
    assert "example" in done.stdout
    assert not done.stderr


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_folder_without_an_agent_gets_a_sentence(command: str, tmp_path: object) -> None:
    arguments = [sys.executable, "-m", "edge_agent", command, "--state", f"{tmp_path}/nothing"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("edge-agent: ")
    assert "no agent here" in done.stderr
    assert "Traceback" not in done.stderr
