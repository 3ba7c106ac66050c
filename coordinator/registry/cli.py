"""`fieldfare models`: what is registered."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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


@app.command()
def gates(
    model: str,
    file: Annotated[
        Path | None, typer.Option("--set", help="TOML file with a table [gates] to keep from now on.")
    ] = None,
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """Show or set what a model's variants must hold to ship; a compress job that names gates itself goes by those.

    Example: fieldfare models gates digits --set gates.toml --state state
    """
    import msgspec

    from coordinator.client import gates_from_toml
    from coordinator.errors import SetupError

    wanted = None
    if file is not None:
        try:
            wanted = gates_from_toml(file.read_text(), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise SetupError(f"{file}: cannot be read: {error}") from error
    with connect(state) as client:
        found = client.gates(model) if wanted is None else client.set_gates(model, wanted)
    if as_json:
        print_json(found)
    elif found is None:
        typer.echo(f"nobody set gates for {model}; the defaults hold")
    else:
        print_table(["GATE", ""], _scalars(msgspec.to_builtins(found)))


@app.command()
def override(
    model: str,
    version: int,
    variant: str,
    reason: Annotated[str, typer.Option(help="Why it may ship although it failed.")],
    key: Annotated[Path, typer.Option(help="Private key of a holder of the targets role: NAME.pem or NAME.hsm.")],
    by: Annotated[str, typer.Option(help="Who signs; default: the key's name.")] = "",
    expires: Annotated[int, typer.Option(min=1, max=3650, help="Days until it no longer counts.")] = 30,
    passphrase_file: Annotated[Path | None, typer.Option(help="File with the key's passphrase or PIN.")] = None,
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """Sign that a variant may ship although it failed its gate: this artifact, for the reasons that the gate gave.

    Example: fieldfare models override digits 2 int8 --reason "field trial of ten" --key alice/targets-1.pem
    """
    from coordinator.errors import ConflictError, NotFoundError
    from coordinator.registry import overrides
    from coordinator.signing import keys
    from coordinator.signing.console import ask_with

    with connect(state) as client:
        found = next((each for each in client.get_version(model, version).variants if each.name == variant), None)
        if found is None:
            raise NotFoundError(f"{model}:{version} has no variant {variant!r}; see: fieldfare models show")
        if found.gate.passed:
            raise ConflictError(f"{model}:{version} {variant} passed its gate and needs no override")
        now = time.time()
        statement = overrides.Statement(
            model=model,
            version=version,
            variant=variant,
            artifact_sha256=found.tflite_sha256,
            reasons=found.gate.reasons,
            reason=reason,
            by=by or key.stem,
            signed_at=now,
            expires_at=now + expires * 86400.0,
        )
        signed = overrides.sign(statement, keys.load(key.parent, key.stem, ask_with(passphrase_file)))
        made = client.override(
            model, version, variant, statement=signed.statement, keyid=signed.keyid, signature=signed.signature
        )
    if as_json:
        print_json(made)
        return
    typer.echo(f"{model}:{version} {variant} may ship until {moment(made.expires_at)}, although it:")
    for each in made.reasons:
        typer.echo(f"  {each}")


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
        "weights": version.weights_sha256 or "-",
        **({"artifact": version.artifact_sha256} if version.artifact_sha256 else {}),
        **{f"metric {name}": value for name, value in _scalars(version.metrics)},
    }
    print_table(["", ""], facts.items())
    typer.echo("")
    rows: list[tuple[str, str, str]] = []
    for variant in version.variants:
        said = ["passed"] if variant.gate.passed else variant.gate.reasons
        gate = "; ".join([*said, *variant.gate.notes])
        shown = {name: variant.report[name] for name in _MEASURED if variant.report.get(name) is not None}
        report = ", ".join(f"{name} {value}" for name, value in _scalars(shown))
        rows.append((variant.name, gate, report))
    print_table(["VARIANT", "GATE", "MEASURED"], rows)
    typer.echo("")
    if version.overrides:
        signed = [
            (
                o.variant,
                o.artifact_sha256[:12],
                o.by,
                o.keyid[:16],
                moment(o.expires_at),
                "yes" if o.in_force else "no",
                o.reason,
            )
            for o in version.overrides
        ]
        print_table(["OVERRIDE OF", "ARTIFACT", "BY", "KEY", "UNTIL", "IN FORCE", "REASON"], signed)
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
