"""The demonstration as a newcomer runs it: twice side by side, on both brokers, and its report in a browser."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BROKERS = ("embedded", "mosquitto")


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both demonstrations, run at the same time on this machine."""
    folders = {broker: tmp_path_factory.mktemp(broker) for broker in BROKERS}
    running = {}
    for broker, folder in folders.items():
        command = [sys.executable, "-m", "fieldfare", "demo", "--broker", broker, "--json", "result.json"]
        running[broker] = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    for broker, process in running.items():
        output, _ = process.communicate(timeout=900)
        (folders[broker] / "output.txt").write_text(output)
        assert process.returncode == 0, output
    return folders


@pytest.mark.slow
@pytest.mark.mosquitto
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("broker", BROKERS)
def test_the_loop_ends_with_a_recovered_model(demos: dict[str, Path], broker: str) -> None:
    result = json.loads((demos[broker] / "result.json").read_text())
    accuracy = {
        (images, version): result[images][version]["accuracy"] for images in ("clean", "drifted") for version in "12"
    }

    assert accuracy["clean", "1"] > 0.93
    assert accuracy["drifted", "1"] < accuracy["clean", "1"] - 0.1
    assert accuracy["drifted", "2"] > accuracy["drifted", "1"] + 0.05
    assert result["alert"]["cohort"] == result["drifting"] == ["meter-1", "meter-2", "meter-3"]
    assert [rollout["state"] for rollout in result["rollouts"]] == ["done", "done"]
    assert result["version_2"]["parents"] == [1]
    assert result["drift_clean"]["drifting"]["devices"] == result["drift_rebased"]["drifting"]["devices"] == []
    assert result["drift_clean"]["drifting"]["tested"] == 5
    assert set(result["variants"]) == {"float", "int8", "pruned-clustered-int8"}


@pytest.mark.slow
@pytest.mark.mosquitto
@pytest.mark.timeout(1000)
def test_a_demonstration_leaves_its_report_and_nothing_else(demos: dict[str, Path]) -> None:
    for broker, folder in demos.items():
        names = {path.name for path in folder.iterdir()}
        assert names == {"demo-report.html", "result.json", "output.txt"}, broker
        assert "Recovered" in (folder / "output.txt").read_text()


@pytest.mark.slow
@pytest.mark.mosquitto
@pytest.mark.chromium
@pytest.mark.timeout(1000)
def test_the_report_shows_its_pictures_in_a_browser(demos: dict[str, Path], tmp_path: Path) -> None:
    page = demos["embedded"] / "demo-report.html"
    command = [
        *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,2000", "--dump-dom", page.as_uri()),
    ]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    assert shown.count("<svg") == 5
    assert "version 2 on the same drifted images" in shown
    links = page.read_text().replace("http://www.w3.org", "")
    assert "http" not in links  # nothing is fetched: the page is whole in itself
