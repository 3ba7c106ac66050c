"""`fieldfare demo`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Run the whole loop once: real data, real processes, this machine alone.")


@app.callback(invoke_without_command=True)
def demo(
    devices: Annotated[int, typer.Option(min=4, max=8, help="Agents to start.")] = 5,
    broker: Annotated[str, typer.Option(help="embedded (nothing to install) or mosquitto.")] = "embedded",
    keep: Annotated[bool, typer.Option("--keep", help="Keep the demonstration's folder and say where it is.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write all results to this file as JSON.")] = None,
    report: Annotated[Path, typer.Option(help="HTML report to write.")] = Path("demo-report.html"),
    seed: Annotated[int, typer.Option(help="Of the devices' shares and of the drift.")] = 0,
) -> None:
    """Run the whole loop once, from raw data to a federated, drift-watched fleet.

    Starts a coordinator, a broker, a signer and one agent for each device; trains, compresses, signs and rolls out a
    model; lets some cameras drift; answers the alert with a federated run; and proves the recovery.

    Examples:
        fieldfare demo

        fieldfare demo --broker mosquitto --devices 6 --json result.json --keep
    """
    from fieldfare.demo.story import tell

    if broker not in {"embedded", "mosquitto"}:
        raise typer.BadParameter("use embedded or mosquitto", param_hint="--broker")
    raise typer.Exit(tell(devices=devices, broker=broker, keep=keep, json_file=json, report=report, seed=seed))
