"""The results as a table that a person can read in a terminal."""

from rich.console import Console
from rich.table import Table

from fieldfare.demo.outcome import Evaluation, Outcome


def show(console: Console, outcome: Outcome) -> None:
    """Print what the demonstration found out."""
    variants = Table(title="Variants of version 1, measured in LiteRT", title_justify="left")
    for column in ("variant", "accuracy", "KiB", "KiB zstd", "p50 us", "p95 us", "gate"):
        variants.add_column(
            column, justify="left" if column in {"variant", "gate"} else "right", no_wrap=column == "variant"
        )
    for name, variant in outcome.variants.items():
        report = variant["report"]
        variants.add_row(
            name,
            f"{report['accuracy']:.3f}",
            f"{report['bytes'] / 1024:.1f}",
            f"{report['zstd_bytes'] / 1024:.1f}",
            f"{report['p50_us']:.0f}",
            f"{report['p95_us']:.0f}",
            "passes" if variant["gate"]["passed"] else "fails",
        )
    console.print(variants)
    recovery = Table(title="The same held-out images, before and after", title_justify="left")
    for column in ("images", "version 1", "estimated", "version 2", "estimated"):
        recovery.add_column(column, justify="left" if column == "images" else "right")
    for name, evaluations in (("clean", outcome.clean), ("drifted", outcome.drifted)):
        recovery.add_row(name, *_cells(evaluations["1"]), *_cells(evaluations["2"]))
    console.print(recovery)
    console.print(
        "Estimated: mean confidence, without labels; it follows covariate shift and is blind to a changed concept.\n"
        f"Reported from {outcome.smallest_cohort} devices on, set for this demonstration; the default is 10.",
        style="dim",
    )


def _cells(evaluation: Evaluation) -> tuple[str, str]:
    return f"{evaluation.accuracy:.3f}", f"{evaluation.estimated_accuracy:.3f}"
