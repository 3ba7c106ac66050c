"""What the command-line modules of the coordinator share: options, the connection, tables and JSON.

Standard library and typer only at module level, so that `--help` stays quick.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from coordinator.client import Client

State = Annotated[
    Path, typer.Option("--state", envvar="FIELDFARE_STATE", help="State folder of the coordinator on this machine.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
STATE = Path("state")


def connect(state: Path) -> "Client":
    """Client of the coordinator in `state`; a coordinator that is down is waited for 5 s only."""
    from coordinator.client import Client

    return Client.from_state(state, retry_s=5.0)


def print_json(value: object) -> None:
    """Print records as one JSON document."""
    import msgspec

    typer.echo(json.dumps(msgspec.to_builtins(value), indent=2, sort_keys=True))


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns, as wide as their widest cell."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def moment(seconds: float | None) -> str:
    """Local date and time of seconds since the epoch; `-` for none."""
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def watch(look: Callable[[], Any], show: Callable[[Any], None], ended: Callable[[Any], bool], *, poll_s: float) -> Any:
    """Look until it has ended, showing every change; returns the last value."""
    seen = None
    while True:
        value = look()
        if value != seen:
            show(value)
            seen = value
        if ended(value):
            return value
        time.sleep(poll_s)
