"""docs/apps.md: its examples run."""

import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.config import Source
from edge_agent.samplestore import SampleStore
from edge_agent.serving import Serving
from edge_agent.sources import command, http, mqtt, table
from edge_agent.sources.plugin import Context, Plugin
from edge_agent.sources.push import Pushes
from tests.fakes import agent_bundles
from tests.fakes.agent_api import model, served

PAGE = (Path(__file__).parents[3] / "docs" / "apps.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [code for language, code in BLOCKS if language == "sh"]


@pytest.fixture
def socket(tmp_path: Path) -> Any:
    serving = Serving()
    serving.swap("thirds", model(agent_bundles.make()))
    store = SampleStore(tmp_path / "samples", quota_bytes=10**6, keep_s=1e6, clock=lambda: 0.0, event=print)
    with served(tmp_path, serving, add_samples=store.add):
        yield tmp_path / "api.sock"
    assert not store.counts() or store.counts() == {"thirds": 20}


@pytest.mark.parametrize("code", PYTHON[:2])
def test_the_python_examples_run(socket: Path, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "apps.md", "exec"), {"SOCKET": socket, "MODEL": "thirds"})
    assert "by version 1" in capsys.readouterr().out or "add_samples" in code


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("code", SHELL)
def test_the_curl_examples_run(socket: Path, code: str) -> None:
    script = f"set -e\nSOCKET={socket}\n{code}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert '"versions":["1"]' in done.stdout
    assert '"data":["low"]' in done.stdout


def test_the_sources_of_the_page_have_options_that_exist() -> None:
    kinds = {"csv": table.CSV, "mqtt": mqtt.MQTT, "command": command.COMMAND, "http": http.HTTP}
    toml = next(code for language, code in BLOCKS if language == "toml")
    for source in msgspec.toml.decode(toml)["sources"]:
        parsed = msgspec.convert(source, Source)
        kinds.pop(parsed.kind).read_options(parsed.kind, parsed.options)
    assert not kinds


def test_the_plug_in_of_the_page_is_one() -> None:
    names: dict[str, Any] = {}
    exec(compile(PYTHON[2], "apps.md", "exec"), names)
    kind = names["CLOCK"]
    assert isinstance(kind, Plugin)
    context = Context("", threading.Event(), Pushes())
    batches = kind.open(kind.read_options("clock", {"every_s": 0.01}), context)
    assert next(batches).x.shape == (16,)
    batches.close()
