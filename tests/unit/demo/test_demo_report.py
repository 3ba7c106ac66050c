"""What a demonstration shows of its results: page, pictures and table, from an outcome that one recorded."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import pytest
from rich.console import Console

from fieldfare.demo import plots, report, table
from fieldfare.demo.outcome import Outcome
from fieldfare.digits import task

RECORDED = Path(__file__).with_name("outcome.json")


@pytest.fixture
def outcome() -> Outcome:
    return msgspec.json.decode(RECORDED.read_bytes(), type=Outcome)


def test_the_page_says_what_was_measured(outcome: Outcome) -> None:
    page = report.page(outcome)
    for number in (outcome.clean["1"], outcome.drifted["1"], outcome.drifted["2"]):
        assert f"<b>{number.accuracy:.1%}</b>" in page
    assert "meter-1, meter-2, meter-3" in page
    assert "fewer than 2 devices are never reported" in page
    assert "re-baselined, not recovered" in page
    assert page.count("<svg") == 5


def test_the_page_is_whole_in_itself(outcome: Outcome) -> None:
    page = report.page(outcome)
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=[\"']http", page)


def test_what_others_wrote_cannot_become_markup(outcome: Outcome) -> None:
    outcome.rollouts[0]["devices"][0]["device"] = "<b>meter</b>"
    outcome.alert["feature"] = "<i>tilt</i>"
    page = report.page(outcome)
    assert "<b>meter</b>" not in page
    assert "<i>tilt</i>" not in page


@pytest.mark.parametrize("seed", [0, 3])
def test_the_pictures_are_of_the_test_images_of_this_very_seed(outcome: Outcome, seed: int) -> None:
    outcome.seed = seed
    data = task.load_data(outcome.devices, seed)
    held_out = {image.tobytes() for image in data["x"][data["part"] == "test"]}
    clean, drifted = report._samples(outcome)
    assert {image.tobytes() for image in clean} <= held_out
    assert clean.shape == drifted.shape == (10, 8, 8, 1)
    assert not np.array_equal(clean, drifted)


@pytest.mark.parametrize("plot", [plots.recovery, plots.variants, plots.rounds, plots.shift])
def test_every_picture_is_one_svg(outcome: Outcome, plot: object) -> None:
    assert callable(plot)
    assert ET.fromstring(plot(outcome)).tag.endswith("svg")


def test_the_report_is_whole_or_not_there(outcome: Outcome, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report.write(path, outcome)
    assert path.read_text().endswith("</html>\n")
    outcome.drifted = {}
    with pytest.raises(KeyError):
        report.write(tmp_path / "other.html", outcome)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_the_table_fits_a_terminal_of_80_columns_and_names_every_variant(outcome: Outcome) -> None:
    console = Console(width=80, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115 closed below
    table.show(console, outcome)
    text = console.export_text()
    console.file.close()
    assert all(name in text for name in outcome.variants)
    assert f"{outcome.drifted['2'].accuracy:.3f}" in text
    assert "…" not in text  # nothing is cut
    assert max(map(len, text.splitlines())) <= 80
