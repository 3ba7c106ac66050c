"""The demonstration's small parts: settings, cameras, what it needs of the machine, outcome and screen."""

from pathlib import Path

import numpy as np
import pytest

from contract import tensors
from fieldfare.demo import preflight
from fieldfare.demo.captures import Camera
from fieldfare.demo.errors import StationFailedError
from fieldfare.demo.settings import DRIFT, SMALLEST_COHORT, Settings
from fieldfare.digits import task


@pytest.mark.parametrize(("devices", "drifting"), [(4, 3), (5, 3), (6, 4), (7, 5), (8, 5)])
def test_three_of_five_cameras_drift_and_some_never_do(tmp_path: Path, devices: int, drifting: int) -> None:
    settings = Settings(folder=tmp_path, devices=devices)
    assert settings.drifting == [f"meter-{number}" for number in range(1, drifting + 1)]
    assert SMALLEST_COHORT <= drifting < devices


def test_everything_lies_in_the_demonstrations_own_folder(tmp_path: Path) -> None:
    settings = Settings(folder=tmp_path)
    assert settings.state.parent == settings.agent("meter-1").parent == tmp_path
    assert settings.coordinator()["smallest_cohort"] == SMALLEST_COHORT


@pytest.mark.parametrize("devices", [4, 8])
def test_every_camera_has_enough_images_for_a_baseline(devices: int) -> None:
    for images, _ in task.device_samples(devices).values():
        assert len(images) >= DRIFT["baseline_samples"]


def test_a_capture_is_whole_has_a_newer_name_than_the_last_and_keeps_the_labels(tmp_path: Path) -> None:
    images, classes = np.zeros((3, 8, 8, 1), np.uint8), np.array([1, 2, 3])
    lens = Camera(tmp_path / "source", (images, classes))
    lens.capture()
    lens.capture(images + np.uint8(5))
    files = sorted((tmp_path / "source").iterdir())
    assert [file.name for file in files] == ["0001.safetensors", "0002.safetensors"]
    clean, drifted = (tensors.load(file.read_bytes()) for file in files)
    assert (clean["x"] == 0).all()
    assert (drifted["x"] == 5).all()
    assert drifted["y"].tolist() == clean["y"].tolist() == [1, 2, 3]


def test_a_package_that_a_station_will_need_is_missed_before_anything_starts() -> None:
    preflight.packages()
    with pytest.raises(StationFailedError, match=r"no_such_framework.*fieldfare\[all\]"):
        preflight.packages(["json", "no_such_framework"])


def test_a_report_that_cannot_be_written_is_refused_before_anything_starts(tmp_path: Path) -> None:
    preflight.writable(tmp_path / "report.html", None)
    with pytest.raises(StationFailedError, match=r"missing/report\.html: cannot be written: No such file"):
        preflight.writable(tmp_path / "missing" / "report.html")
    with pytest.raises(StationFailedError, match="it is a folder"):
        preflight.writable(tmp_path)
    assert not list(tmp_path.iterdir())
