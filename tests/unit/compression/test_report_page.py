"""The report: what it shows, that text from elsewhere cannot break it, and that it can be made again."""

import msgspec

from compression.report import page, plots
from compression.report.content import Content, Search, VariantEntry
from compression.stage import Record

REPORT = {
    "validation_accuracy": 0.91,
    "drop": 0.004,
    "drop_low": -0.001,
    "drop_high": 0.009,
    "calibration_error": 0.02,
    "bytes": 100_000,
    "gzip_bytes": 40_000,
    "zstd_bytes": 38_000,
    "arena_bytes": 12_000,
    "p50_us": 80.0,
    "p95_us": 95.0,
    "accuracy": None,
    "worst_class": {"name": "<b>shirt</b>", "accuracy": 0.71, "samples": 500},
    "worst_device": {"name": "studio", "accuracy": 0.91, "samples": 5000},
}


def variant(name: str, size: int, reasons: list[str]) -> VariantEntry:
    record = Record(stage="prune", parameters={}, seconds=1.5, deterministic=False, notes={"sparsity": 0.8})
    report = REPORT | {"zstd_bytes": size}
    return VariantEntry(
        name=name,
        recipe={"name": name, "stages": [{"stage": "distill", "student": None}]},
        records=[record],
        report=report,
        passed=not reasons,
        reasons=reasons,
    )


CONTENT = Content(
    model="fashion",
    version=3,
    task="<script>alert(1)</script>",
    snapshot_sha256="ab" * 32,
    gates={"max_drop": 0.02, "max_bytes": None},
    variants=[variant("float", 600_000, []), variant("tiny", 38_000, []), variant("lossy", 9_000, ["loses <a lot>"])],
    chosen="tiny",
    training="",
    search=Search(
        budget="size<=64KiB",
        trials=[
            {"name": "t1", "state": "complete", "zstd_bytes": 40_000, "validation_accuracy": 0.9, "p95_us": 90.0},
            {"name": "t2", "state": "stopped", "why": "hopeless: 40 % after pruning"},
        ],
        front=["t1"],
        sensitivity=[
            {"layer": "edges", "technique": "int4", "drop": 0.03},
            {"layer": "edges", "technique": "prune 80 %", "drop": 0.01},
            {"layer": "logits", "technique": "int4", "drop": -0.001},
        ],
    ),
    seconds=61.0,
    environment={"tensorflow": "2.21.0"},
)


def test_the_page_shows_choice_reasons_trials_and_layers() -> None:
    text = page.html(CONTENT)
    assert text.count("<svg") == 3
    for shown in ("tiny", "15.8 x", "hopeless: 40 % after pruning", "not promised", "sparsity: 0.8", "max_drop 0.02"):
        assert shown in text
    assert "max_bytes" not in text


def test_text_from_elsewhere_is_escaped() -> None:
    text = page.html(CONTENT)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "<b>shirt" not in text
    assert "loses &lt;a lot&gt;" in text


def test_the_same_content_gives_the_same_page_and_picture_again() -> None:
    again = msgspec.json.decode(msgspec.json.encode(CONTENT), type=Content)
    assert page.html(again) == page.html(CONTENT)
    assert plots.png(again) == plots.png(CONTENT)


def test_a_report_without_a_choice_says_so() -> None:
    refused = [each for each in CONTENT.variants if not each.passed]
    none = msgspec.structs.replace(CONTENT, chosen=None, search=None, variants=refused)
    assert "of the variants may ship" in page.html(none)


def test_a_budget_that_nothing_met_is_not_a_gate_that_failed() -> None:
    text = page.html(msgspec.structs.replace(CONTENT, chosen=None, refused="nothing met the budget; tiny is nearest"))
    assert "of the variants may ship" not in text
    assert "nothing met the budget; tiny is nearest" in text


def test_what_ships_by_a_signed_word_is_not_called_what_may_ship() -> None:
    lossy = msgspec.structs.replace(CONTENT.variants[2], overridden=True)
    text = page.html(msgspec.structs.replace(CONTENT, chosen="lossy", variants=[*CONTENT.variants[:2], lossy]))
    assert "ships by a signed override" in text
    assert "is the smallest that may ship" not in text
    assert ">by override</td>" in text
