"""`fieldfare models`: what is registered."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from coordinator.commands import STATE, AsJson, State, connect, moment, print_json, print_table

if TYPE_CHECKING:
    from coordinator.records import Version

app = typer.Typer(
    help="Models, their versions, variants and bundles.", no_args_is_help=True, pretty_exceptions_enable=False
)

# Of a variant's report; --json has all of it.
_MEASURED = (
    "accuracy",
    "validation_accuracy",
    "drop",
    "bytes",
    "gzip_bytes",
    "zstd_bytes",
    "p50_us",
    "p95_us",
    "temperature",
)


@app.command("list")
def list_models(state: State = STATE, as_json: AsJson = False) -> None:
    """List models with their versions.

    Example: fieldfare models list --state state
    """
    with connect(state) as client:
        models = client.models()
    if as_json:
        print_json(models)
        return
    rows = [(m.name, ", ".join(map(str, m.versions)), moment(m.created_at)) for m in models]
    print_table(["MODEL", "VERSIONS", "CREATED"], rows)


@app.command()
def show(model: str, version: int, state: State = STATE, as_json: AsJson = False) -> None:
    """Show one version: where it comes from, how good it is, its variants and bundles.

    Example: fieldfare models show digits 1 --state state
    """
    with connect(state) as client:
        found = client.get_version(model, version)
    if as_json:
        print_json(found)
        return
    _show(found)


def _scalars(metrics: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Numbers and words in nested metrics, by dotted name; lists are left to --json."""
    for name, value in metrics.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            yield f"{prefix}{name}", round(value, 4) if isinstance(value, float) else value


def _show(version: "Version") -> None:
    facts: dict[str, Any] = {
        "model": f"{version.model}:{version.version}",
        "created": moment(version.created_at),
        "task": version.task,
        "parents": ", ".join(map(str, version.parents)) or "-",
        "snapshot": version.snapshot_sha256 or "-",
        "run": version.run or "-",
        "weights": version.weights_sha256,
        **{f"metric {name}": value for name, value in _scalars(version.metrics)},
    }
    print_table(["", ""], facts.items())
    typer.echo("")
    rows: list[tuple[str, str, str]] = []
    for variant in version.variants:
        gate = "passed" if variant.gate.passed else "; ".join(variant.gate.reasons)
        shown = {name: variant.report[name] for name in _MEASURED if variant.report.get(name) is not None}
        report = ", ".join(f"{name} {value}" for name, value in _scalars(shown))
        rows.append((variant.name, gate, report))
    print_table(["VARIANT", "GATE", "MEASURED"], rows)
    typer.echo("")
    bundles = [(b.variant, b.sha256[:12], b.size, moment(b.signed_at)) for b in version.bundles]
    print_table(["BUNDLE OF", "SHA-256", "BYTES", "SIGNED"], bundles)


@app.command()
def bundles(state: State = STATE, as_json: AsJson = False) -> None:
    """List bundles, newest first.

    Example: fieldfare models bundles --state state --json
    """
    with connect(state) as client:
        found = client.bundles()
    if as_json:
        print_json(found)
        return
    rows = [(f"{b.model}:{b.version}", b.variant, b.sha256, b.size, moment(b.signed_at)) for b in found]
    print_table(["MODEL", "VARIANT", "SHA-256", "BYTES", "SIGNED"], rows)
