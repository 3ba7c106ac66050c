"""A person makes a version smaller with the commands that people type, and looks at the report."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.served_site import ServedSite

pytestmark = pytest.mark.slow

RECIPE = """
name = "mine"
description = "for this test"
[[stages]]
stage = "prune"
sparsity = 0.5
epochs = 1
[[stages]]
stage = "int8"
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedSite]:
    site = ServedSite(tmp_path_factory.mktemp("compress") / "state")
    job = site.client.create_job("train", {"task": "digits", "model": "digits", "epochs": 12})
    site.client.wait_job(job.id, timeout_s=240)
    yield site
    site.close()


def fieldfare(site: ServedSite, *arguments: str) -> "subprocess.CompletedProcess[str]":
    program = str(Path(sys.executable).with_name("fieldfare"))
    command = [program, "compress", *arguments, "--state", str(site.state)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)


@pytest.mark.chromium
def test_recipes_make_variants_a_report_and_a_bundle(served: ServedSite, tmp_path: Path) -> None:
    recipe, report, gates = tmp_path / "mine.toml", tmp_path / "found.html", tmp_path / "gates.toml"
    recipe.write_text(RECIPE)
    gates.write_text("[gates]\nmax_drop = 0.5\n")
    told = ("--recipe", "int8", "--recipe", str(recipe), "--gates", str(gates), "--report", str(report))
    done = fieldfare(served, "digits:1", *told)
    assert done.returncode == 0, done.stderr
    assert "\n*  mine " in done.stdout
    assert "waits for the signer" in done.stdout
    assert "pruning to 50% zeros" in done.stderr
    assert report.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    page = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", report.as_uri()],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Compression of digits:1" in page.stdout, page.stderr
    assert (page.stdout.count("<svg"), page.stdout.count("</svg>")) == (2, 2)
    assert page.stdout.count("<use ") + page.stdout.count("<path ") > 50  # what is drawn in them
    variants = {variant.name: variant for variant in served.client.get_version("digits", 1).variants}
    assert set(variants) == {"float", "int8", "mine"}
    assert variants["mine"].report["recipe"]["stages"][0]["sparsity"] == 0.5


def test_scripts_get_json_and_can_ask_for_the_report_later(served: ServedSite, tmp_path: Path) -> None:
    done = fieldfare(served, "digits", "--recipe", "int8", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    job = json.loads(done.stdout)
    assert job["result"]["chosen"] == "int8"
    out = tmp_path / "later.html"
    assert fieldfare(served, "report", job["id"], "--out", str(out)).returncode == 0
    assert "Compression of digits:1" in out.read_text()
    content = json.loads(fieldfare(served, "report", job["id"], "--json").stdout)
    assert [variant["name"] for variant in content["variants"]] == ["float", "int8"]


def test_where_nothing_may_ship_it_says_why_and_exits_1(served: ServedSite, tmp_path: Path) -> None:
    gates = tmp_path / "gates.toml"
    gates.write_text("[gates]\nmax_zstd_bytes = 100\n")
    done = fieldfare(served, "digits:1", "--recipe", "int8", "--gates", str(gates), "--quiet")
    assert done.returncode == 1
    assert "fieldfare: no variant may ship: float has" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits:one",), "digits:one: give MODEL:VERSION, for example digits:1"),
        (("digitz",), "no model 'digitz' in the registry; see: fieldfare models list"),
        (("digits:1", "--recipe", "magic"), "no recipe 'magic'; ready ones are"),
        (("digits:1", "--gates", "none.toml"), "none.toml: "),
        (("report", "nothing"), "nothing"),
        (("report", "nothing", "--out", "page.png"), "page.png: name the .html file"),
        (("digits:1", "--report", "page.png"), "page.png: name the .html file"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_sentence_before_a_job_is_made(
    served: ServedSite, arguments: tuple[str, ...], message: str
) -> None:
    jobs = len(served.client.jobs())
    done = fieldfare(served, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert len(served.client.jobs()) == jobs


def test_a_version_is_written_for_servers_and_checked(served: ServedSite, tmp_path: Path) -> None:
    out = tmp_path / "digits.onnx"
    done = fieldfare(served, "export", "digits:1", "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["bytes"] == out.stat().st_size
    assert told["largest_difference"] < 1e-4
    assert told["accuracy"] > 0.85
    assert list(tmp_path.iterdir()) == [out]
    done = fieldfare(served, "export", "digits:1", "--out", str(tmp_path / "digits.pb"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "digits.pb: only .onnx can be written" in done.stderr
