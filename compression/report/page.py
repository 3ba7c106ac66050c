"""The report as one page of HTML that needs no network and no script."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from compression.report import plots
from compression.report.content import Content, VariantEntry
from compression.stage import Record


@dataclass(frozen=True)
class Column:
    """A column of the table of variants: its title, and the cell of a report."""

    title: str
    cell: Callable[[dict[str, Any]], str]


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _named(pair: Any) -> str:
    return "-" if not pair else f"{pair['name']} {100 * pair['accuracy']:.1f}"


def _drop(report: dict[str, Any]) -> str:
    low, high = report.get("drop_low"), report.get("drop_high")
    span = "" if low is None or high is None else f" [{100 * low:.2f}, {100 * high:.2f}]"
    return f"{100 * report['drop']:.2f}{span}"


COLUMNS = [
    Column("validation, %", lambda r: _points(r["validation_accuracy"])),
    Column("drop, points", _drop),
    Column("test, %", lambda r: _points(r.get("accuracy"))),
    Column("ECE, points", lambda r: _points(r.get("calibration_error"))),
    Column("KiB", lambda r: f"{r['bytes'] / 1024:.1f}"),
    Column("gzip", lambda r: f"{r['gzip_bytes'] / 1024:.1f}"),
    Column("zstd", lambda r: f"{r['zstd_bytes'] / 1024:.1f}"),
    Column("arena, KiB", lambda r: f"{r['arena_bytes'] / 1024:.1f}" if r.get("arena_bytes") else "-"),
    Column("p50, µs", lambda r: f"{r['p50_us']:.1f}"),
    Column("p95, µs", lambda r: f"{r['p95_us']:.1f}"),
    Column("p50, all cores", lambda r: f"{r['p50_threads_us']:.1f}" if r.get("p50_threads_us") else "-"),
    Column("worst class, %", lambda r: _named(r.get("worst_class"))),
    Column("worst device, %", lambda r: _named(r.get("worst_device"))),
]


def html(content: Content) -> str:
    """The page.

    Every text in it is escaped; pictures are inline SVG.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("compression.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    layers = {entry["layer"] for entry in content.search.sensitivity} if content.search else set()
    wide = (10.0, 1.2 + 0.28 * min(plots.LAYERS, len(layers)))
    return environment.get_template("page.html.j2").render(
        content=content,
        tiles=_tiles(content),
        pareto=Markup(plots.svg(plots.pareto, content)),  # noqa: S704 made by matplotlib, which escapes its texts
        latency=Markup(plots.svg(plots.latency, content)),  # noqa: S704
        sensitivity=Markup(plots.svg(plots.sensitivity, content, size=wide)) if layers else "",  # noqa: S704
        columns=COLUMNS,
        rows=[_row(each, content.chosen) for each in content.variants],
        recipes={each.name: recipe_text(each.recipe) for each in content.variants},
        notes=_notes,
        stopped=[t for t in content.search.trials if t["state"] != "complete"] if content.search else [],
        gates=", ".join(f"{name} {value}" for name, value in content.gates.items() if value not in (None, {}, False)),
    )


def recipe_text(recipe: dict[str, Any]) -> str:
    """A recipe as TOML, which has no word for nothing: parameters without a value are left out."""
    stages = [{name: value for name, value in stage.items() if value is not None} for stage in recipe.get("stages", [])]
    return msgspec.toml.encode(recipe | {"stages": stages}).decode().strip()


def _tiles(content: Content) -> list[dict[str, str]]:
    by_name = {each.name: each for each in content.variants}
    base, chosen = by_name.get("float"), by_name.get(content.chosen or "")
    if chosen is None:
        text = "of the variants was chosen" if any(map(_may_ship, content.variants)) else "of the variants may ship"
        return [{"kind": "bad", "value": "none", "text": text}]
    how = "ships by a signed override" if chosen.overridden else "is the smallest that may ship"
    tiles = [{"kind": "good", "value": chosen.name, "text": how}]
    if base is not None:
        size, speed = (base.report[key] / chosen.report[key] for key in ("zstd_bytes", "p50_us"))
        tiles.append({"kind": "", "value": f"{size:.1f} x", "text": "fewer bytes on the way than float"})
        tiles.append({"kind": "", "value": f"{speed:.1f} x", "text": "the speed of float, one thread"})
    lost, low, high = (100 * chosen.report[key] for key in ("drop", "drop_low", "drop_high"))
    text = f"points of validation accuracy lost, 95 % interval {low:.2f} to {high:.2f}"
    tiles.append({"kind": "", "value": f"{lost:.2f}", "text": text})
    return tiles


def _may_ship(variant: VariantEntry) -> bool:
    return variant.passed or variant.overridden


def _row(variant: VariantEntry, chosen: str | None) -> dict[str, Any]:
    return {
        "name": variant.name,
        "cells": [column.cell(variant.report) for column in COLUMNS],
        "passed": variant.passed,
        "ships": "yes" if variant.passed else "by override" if variant.overridden else "no",
        "reasons": "; ".join(variant.reasons),
        "chosen": variant.name == chosen,
    }


def _notes(record: Record) -> str:
    return ", ".join(f"{name}: {value}" for name, value in record.notes.items()) or "-"
