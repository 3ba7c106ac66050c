"""Pictures of the results, each an inline SVG that needs no network and no script."""

import io
from typing import Any

import numpy as np

from fieldfare.demo.outcome import Outcome
from fieldfare.demo.settings import DRIFT

BLUE, ORANGE, GREY, GREEN = "#2f6f9f", "#d9822b", "#9aa5ad", "#3f8f5f"
SIZE = (5.2, 3.1)  # inches


def recovery(outcome: Outcome) -> str:
    """Accuracy and its estimate from confidence: both versions, clean and drifted images."""
    figure, axes = _figure()
    groups = [("clean", "1"), ("clean", "2"), ("drifted", "1"), ("drifted", "2")]
    found = [getattr(outcome, images)[version] for images, version in groups]
    place = np.arange(len(groups))
    bars = axes.bar(place - 0.2, [f.accuracy for f in found], 0.38, color=BLUE, label="accuracy")
    guess = axes.bar(place + 0.2, [f.estimated_accuracy for f in found], 0.38, color=GREY, label="estimated")
    for group in (bars, guess):
        axes.bar_label(group, fmt="%.2f", fontsize=8, padding=1)
    axes.set_xticks(place, [f"{images}\nversion {version}" for images, version in groups])
    axes.set_ylim(0, 1.12)
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.16))
    return _svg(figure)


def variants(outcome: Outcome) -> str:
    """Compressed size against accuracy for each variant of version 1."""
    figure, axes = _figure()
    for name, variant in outcome.variants.items():
        report = variant["report"]
        passed = variant["gate"]["passed"]
        axes.scatter(report["zstd_bytes"] / 1024, report["accuracy"], s=60, color=GREEN if passed else ORANGE)
        axes.annotate(
            f"{name}\n{report['p50_us']:.0f} µs",
            (report["zstd_bytes"] / 1024, report["accuracy"]),
            textcoords="offset points",
            xytext=(7, -4),
            fontsize=8,
        )
    axes.set_xlabel("KiB to transport (zstd)")
    axes.set_ylabel("accuracy in LiteRT")
    axes.margins(x=0.3, y=0.4)
    return _svg(figure)


def rounds(outcome: Outcome) -> str:
    """Loss over the rounds of the federated run, as the devices reported it."""
    figure, axes = _figure()
    trained = [r for r in outcome.run["rounds"] if r["kind"] == "train"]
    numbers = [r["round"] for r in trained]
    axes.plot(numbers, [r["metrics"]["loss"] for r in trained], "o-", color=BLUE, label="loss on the devices")
    twin = axes.twinx()
    twin.plot(
        numbers, [r["metrics"]["accuracy"] for r in trained], "s--", color=ORANGE, label="accuracy on the devices"
    )
    axes.set_xlabel("round")
    axes.set_ylabel("loss")
    twin.set_ylabel("accuracy")
    twin.spines["top"].set_visible(False)
    axes.set_xticks(numbers)
    lines = [*axes.get_lines(), *twin.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], frameon=False, loc="center right", fontsize=8)
    return _svg(figure)


def images(clean: np.ndarray, drifted: np.ndarray) -> str:
    """What a camera saw before and after.

    Args:
        clean, drifted: uint8 in 0..16, shape (n, 8, 8, 1), the same digits.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 2.0), layout="constrained")
    grid = figure.subplots(2, len(clean))
    for row, (title, batch) in enumerate((("clean", clean), ("drifted", drifted))):
        for column, image in enumerate(batch):
            axes = grid[row][column]
            axes.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=16)
            axes.set_xticks([])
            axes.set_yticks([])
        grid[row][0].set_ylabel(title, fontsize=9)
    return _svg(figure)


def shift(outcome: Outcome) -> str:
    """Population stability index of each counted thing: before the drift, after it, and under version 2."""
    figure, axes = _figure()
    moments = (
        ("version 1, clean", outcome.drift_clean, GREEN),
        ("version 1, drifted", outcome.drift_after, ORANGE),
        ("version 2, drifted, new baseline", outcome.drift_rebased, BLUE),
    )
    names = list(_index(outcome.drift_after))
    place = np.arange(len(names))
    for number, (label, report, colour) in enumerate(moments):
        values = _index(report)
        axes.bar(place + (number - 1) * 0.27, [values.get(n, 0.0) for n in names], 0.26, color=colour, label=label)
    axes.axhline(DRIFT["materiality"], color=GREY, linestyle=":", linewidth=1)
    axes.set_xticks(place, names, rotation=20, fontsize=8)
    axes.set_ylabel("PSI against the reference")
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def _index(report: dict[str, Any]) -> dict[str, float]:
    return {row["feature"]: row["psi"] for row in report["features"]}


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]
