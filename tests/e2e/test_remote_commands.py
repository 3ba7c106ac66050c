"""An operator looks into a device from afar, with the commands that people type."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fieldfare.demo.settings import MODEL
from fieldfare.demo.stations import Stations

pytestmark = pytest.mark.slow


def fieldfare(site: Stations, *arguments: str, of: str = "devices") -> "subprocess.CompletedProcess[str]":
    program = str(Path(sys.executable).with_name("fieldfare"))
    command = [program, of, *arguments, "--state", str(site._settings.state)]
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


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents that start from now on measure for operators."""
    monkeypatch.setenv("FIELDFARE_AGENT_REMOTE__BENCH", "true")


@pytest.mark.mosquitto
@pytest.mark.postgresql
@pytest.mark.usefixtures("allowed")
def test_an_operator_has_a_device_measure_a_bundle_that_it_does_not_serve(production_site: Stations) -> None:
    site = production_site
    name = site.client.devices()[0].name
    made = fieldfare(site, "bench", f"{MODEL}:1", "--on", name, "--wait", "180", "--json", of="compress")
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout)
    assert (found["device"], found["bundle_sha256"]) == (name, site._bundles[1].sha256)
    assert 0 < found["measured"]["p50_us"] <= found["measured"]["p95_us"]
    assert found["hardware_class"] == site.client.device(name).hardware_class
    artifact = site.client.get_version(MODEL, 1).variants[0].tflite_sha256
    assert [each.id for each in site.client.measurements(artifact)] == [found["id"]]
    assert (site.client.device(name).hello or {})["bundles"] == []
    again = fieldfare(site, "bench", f"{MODEL}:1", "--on", name, "--wait", "60", of="compress")
    assert again.returncode == 1
    assert "one measurement in 60 s is enough" in again.stderr


def test_a_device_whose_owner_did_not_allow_it_measures_nothing(site: Stations) -> None:
    name = site.client.devices()[0].name
    made = fieldfare(site, "bench", f"{MODEL}:1", "--on", name, "--wait", "60", of="compress")
    assert made.returncode == 1
    assert "remote.bench = true" in made.stderr
    assert "Traceback" not in made.stderr
