"""`fieldfare broker`: the configuration of a Mosquitto that somebody else runs."""

from pathlib import Path
from typing import Annotated

import typer

from coordinator.commands import STATE, AsJson, State

app = typer.Typer(
    help="The MQTT broker: configure a Mosquitto of your own.", no_args_is_help=True, pretty_exceptions_enable=False
)


@app.callback()
def broker() -> None:
    """The MQTT broker: configure a Mosquitto of your own."""


@app.command()
def config(
    out: Annotated[Path, typer.Option("--out", help="Folder to write to; made if missing.")] = Path("broker"),
    host: Annotated[
        str, typer.Option(help="Name or address under which devices reach it; goes into its certificate.")
    ] = "",
    port: Annotated[int, typer.Option(help="TCP port; 0: that of coordinator.toml.", min=0, max=65535)] = 0,
    listen: Annotated[str, typer.Option(help="Address that it listens on; empty: --host.")] = "",
    folder: Annotated[
        Path | None, typer.Option(help="Where the files will lie on the broker's machine; empty: --out.")
    ] = None,
    plugin: Annotated[
        Path | None, typer.Option(help="Mosquitto's mosquitto_dynamic_security.so on the broker's machine.")
    ] = None,
    user: Annotated[str, typer.Option(help="System user that the broker runs as.")] = "mosquitto",
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """Write the whole configuration of a Mosquitto for this coordinator's fleet.

    Mutual TLS, the certificate's name as user and as client id, topics by device, revoked certificates, limits.
    The key of the broker is new each time.

    Example: fieldfare broker config --host broker.example --listen 0.0.0.0 --port 8883 --out broker
    """
    from datetime import UTC, datetime

    from coordinator import config as configuration
    from coordinator.broker import mosquitto

    settings = configuration.load(state)
    host = host or settings.broker_host or settings.host
    port = port or settings.broker_port
    place = (folder or out).absolute()
    layout = mosquitto.Layout(listen or host, port, plugin or mosquitto.find_plugin(), f"{place}/", user)
    hosts = tuple(dict.fromkeys((host, "localhost", "127.0.0.1")))
    mosquitto.write_for_system(out, layout, state, hosts=hosts, now=datetime.now(UTC))
    wanted = {
        "broker": "external",
        "broker_host": host,
        "broker_port": port,
        "broker_crl": str(place / "crl.pem"),
        "broker_reload": ["systemctl", "reload", "mosquitto"],
    }
    _tell(out, place, user, wanted, as_json=as_json)


def _tell(out: Path, place: Path, user: str, wanted: dict[str, object], *, as_json: bool) -> None:
    import json

    from coordinator.commands import print_json

    conf = place / "mosquitto.conf"
    if as_json:
        print_json({"out": str(out), "configuration": str(conf), "coordinator": wanted})
        return
    typer.echo(f"{out} holds a Mosquitto configuration. On the broker's machine:")
    typer.echo(f"  chown -R {user} {place}")
    typer.echo(f"  mosquitto -c {conf}        # or as the only configuration of its service")
    typer.echo("In coordinator.toml, so that the coordinator finds it and keeps its list of revoked certificates:")
    for key, value in wanted.items():
        typer.echo(f"  {key} = {json.dumps(value)}")
    typer.echo("broker_reload may be any command, such as a script that copies crl.pem to another machine first.")
