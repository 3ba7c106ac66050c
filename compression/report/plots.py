"""Pictures of a report: inline SVG for the page, and one PNG with the two that matter most."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from compression.report.content import Content, VariantEntry

BLUE, ORANGE, GREY, GREEN = "#2f6f9f", "#d9822b", "#9aa5ad", "#3f8f5f"
_SHADES = (BLUE, "#7fb0d4", ORANGE, "#edbf8f", GREEN, "#97c9a8", GREY, "#5b6870")
LAYERS = 24  # rows of the sensitivity plot


def pareto(axes: Any, content: Content) -> None:
    """Bytes on the way against validation accuracy: trials, the front, and the variants with their intervals."""
    if content.search is not None:
        known = [t for t in content.search.trials if t.get("zstd_bytes") and t.get("validation_accuracy") is not None]
        points = [(t["zstd_bytes"] / 1024, 100 * t["validation_accuracy"]) for t in known]
        if points:
            axes.scatter(*zip(*points, strict=True), s=14, color=GREY, alpha=0.7, label=f"{len(points)} trials")
        front = sorted(
            (t["zstd_bytes"] / 1024, 100 * t["validation_accuracy"]) for t in known if t["name"] in content.search.front
        )
        if front:
            axes.plot(*zip(*front, strict=True), color=GREY, linewidth=1, label="front")
    offsets = (8, -12, 20, -24)
    ordered = sorted(content.variants, key=lambda each: each.report["zstd_bytes"])
    for index, variant in enumerate(ordered):
        x, y = variant.report["zstd_bytes"] / 1024, 100 * variant.report["validation_accuracy"]
        chosen = variant.name == content.chosen
        axes.errorbar(
            x,
            y,
            yerr=_interval(variant),
            fmt="*" if chosen else "o",
            markersize=13 if chosen else 6,
            color=GREEN if variant.passed else ORANGE,
            elinewidth=1,
            capsize=2,
        )
        axes.annotate(
            variant.name,
            (x, y),
            textcoords="offset points",
            xytext=(8, offsets[index % len(offsets)]),
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_plain)
    axes.xaxis.set_minor_formatter(_sparse)
    axes.set_xlabel("KiB on the way (zstd), logarithmic")
    axes.set_ylabel("validation accuracy, %")
    axes.margins(x=0.22, y=0.18)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="lower right")


def _plain(value: float, _position: int) -> str:
    return f"{value:g}"


def _sparse(value: float, _position: int) -> str:
    digit = round(value / 10 ** np.floor(np.log10(value)))
    return f"{value:g}" if digit in {2, 5} else ""


def _interval(variant: VariantEntry) -> Any:
    """What the paired interval of the drop says of the accuracy: below and above, in points."""
    report = variant.report
    low, high, drop = report.get("drop_low"), report.get("drop_high"), report["drop"]
    if low is None or high is None:
        return None
    return [[100 * max(0.0, high - drop)], [100 * max(0.0, drop - low)]]


def sensitivity(axes: Any, content: Content) -> None:
    """Accuracy that each layer costs where it alone is compressed."""
    found = content.search.sensitivity if content.search else []
    techniques = list(dict.fromkeys(entry["technique"] for entry in found))
    layers = list(dict.fromkeys(entry["layer"] for entry in found))
    worst = {layer: max(entry["drop"] for entry in found if entry["layer"] == layer) for layer in layers}
    shown = sorted(sorted(layers, key=worst.__getitem__, reverse=True)[:LAYERS], key=layers.index)
    height = 0.8 / max(1, len(techniques))
    colours = _SHADES
    for number, technique in enumerate(techniques):
        drops = {entry["layer"]: 100 * entry["drop"] for entry in found if entry["technique"] == technique}
        place = np.arange(len(shown)) + (number - (len(techniques) - 1) / 2) * height
        values = [drops.get(layer, 0.0) for layer in shown]
        axes.barh(place, values, height * 0.95, color=colours[number % len(colours)], label=technique)
    axes.set_yticks(np.arange(len(shown)), shown, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel("points of validation accuracy lost, this layer alone")
    axes.legend(frameon=False, fontsize=8)


def latency(axes: Any, content: Content) -> None:
    """Median and 95th percentile of one inference on one thread."""
    ordered = sorted(content.variants, key=lambda each: each.report["p50_us"])
    place = np.arange(len(ordered))
    p50, p95 = ([each.report[name] for each in ordered] for name in ("p50_us", "p95_us"))
    axes.barh(place - 0.2, p50, 0.38, color=BLUE, label="p50")
    axes.barh(place + 0.2, p95, 0.38, color=GREY, label="p95")
    axes.set_yticks(place, [each.name for each in ordered], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("µs of one inference, one thread, the machine that compressed")
    axes.legend(frameon=False, fontsize=8)


def svg(draw: Callable[[Any, Content], None], content: Content, *, size: tuple[float, float] = (6.4, 4.0)) -> str:
    """One picture as an inline SVG that needs no network and no script; the same content gives the same text."""
    import matplotlib as mpl

    figure, (axes,) = _figure(size, 1)
    draw(axes, content)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "fieldfare"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def png(content: Content) -> bytes:
    """The Pareto plot, and beside it sensitivity where it was measured, else latency."""
    second = sensitivity if content.search and content.search.sensitivity else latency
    figure, (left, right) = _figure((12.8, 5.0), 2)
    pareto(left, content)
    second(right, content)
    figure.suptitle(f"{content.model}:{content.version}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def _figure(size: tuple[float, float], columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    plots = np.atleast_1d(figure.subplots(1, columns))
    for axes in plots:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, plots
