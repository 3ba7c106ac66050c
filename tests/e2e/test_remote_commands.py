"""An operator looks into a device from afar, with the commands that people type."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fieldfare.demo.stations import Stations

pytestmark = pytest.mark.slow


def fieldfare(site: Stations, *arguments: str) -> "subprocess.CompletedProcess[str]":
    program = str(Path(sys.executable).with_name("fieldfare"))
    command = [program, "devices", *arguments, "--state", str(site._settings.state)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_operator_raises_a_log_level_and_fetches_diagnostics(site: Stations, tmp_path: Path) -> None:
    name = site.client.devices()[0].name
    done = fieldfare(site, "log-level", name, "debug", "--minutes", "5", "--wait", "60")
    assert (done.returncode, done.stdout) == (0, f"{name} logs from debug on for 5 minutes\n"), done.stderr
    out = tmp_path / "found.zip"
    done = fieldfare(site, "diagnostics", name, "--out", str(out), "--wait", "120")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(out) as archive:
        found: dict[str, Any] = {name: archive.read(name) for name in archive.namelist()}
    findings = {finding["check"]: finding["outcome"] for finding in json.loads(found["doctor.json"])}
    assert findings["broker"] == findings["certificate"] == findings["database"] == "ok"
    assert json.loads(found["status.json"])["device"] == name
    assert b"the log level is debug for 300 s" in found["log.jsonl"]
    listed = json.loads(fieldfare(site, "commands", name, "--json").stdout)
    assert [command["kind"] for command in listed] == ["diagnostics", "log-level"]
    assert all(command["answered_at"] and not command["error"] for command in listed)
