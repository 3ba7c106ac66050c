"""`fieldfare`: every installed package registers its sub-commands in the entry-point group `fieldfare.commands`.

Errors that a person can mend become one sentence on stderr; only this module calls exit.
"""

import sys
from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import typer

GROUP = "fieldfare.commands"
PACKAGES = {"cloud", "compression", "contract", "coordinator", "edge_agent", "fieldfare", "simulations"}


def main() -> None:
    """Run the command line."""
    try:
        import typer
    except ImportError:
        _fail("the command line needs the coordinator's packages: pip install 'fieldfare[coordinator]'", status=2)
    app = typer.Typer(
        name="fieldfare",
        help="Train, shrink, sign, roll out, watch and federate models on fleets of small devices.",
        epilog="Start with: fieldfare demo",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_version_option())
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            _add(app, entry.name, entry.load())
        except ImportError as error:
            if entry.name in sys.argv[1:2]:
                _fail(f"`fieldfare {entry.name}` {_missing(error)}", status=2)
    _run(app)


def _add(app: "typer.Typer", name: str, part: "typer.Typer") -> None:
    """Add a package's commands; a part that is one command alone becomes one, so that its usage says so."""
    alone = part.registered_callback
    if alone is not None and alone.callback is not None and not part.registered_commands:
        app.command(name)(alone.callback)
    else:
        app.add_typer(part, name=name)


def _version_option() -> Callable[..., None]:
    import typer

    def show(value: bool) -> None:
        if value:
            typer.echo(metadata.version("fieldfare"))
            raise typer.Exit

    def callback(
        version: bool = typer.Option(False, "--version", callback=show, is_eager=True, help="Print the version."),
    ) -> None:
        """Train, shrink, sign, roll out, watch and federate models on fleets of small devices."""

    return callback


def _run(app: "typer.Typer") -> None:
    try:
        app()
    except ModuleNotFoundError as error:
        _fail(f"this command {_missing(error)}")
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in PACKAGES:
            raise
        _fail(str(error))  # an error that we raise on purpose says what, where, and what to do


def _missing(error: ImportError) -> str:
    return f"needs a package that is not installed: {error.name or error}; pip install 'fieldfare[all]'"


def _fail(message: str, *, status: int = 1) -> NoReturn:
    sys.stderr.write(f"fieldfare: {message}\n")
    raise SystemExit(status)
