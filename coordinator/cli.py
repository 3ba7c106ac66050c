"""`fieldfare serve`: start a coordinator."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from coordinator.commands import STATE, AsJson, State

app = typer.Typer(
    help="Start a coordinator: broker, control plane and signer.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)


class Role(StrEnum):
    """What a process does; `all` starts the others and looks after them."""

    all = "all"
    broker = "broker"
    coordinator = "coordinator"
    signer = "signer"


class Broker(StrEnum):
    """Which MQTT broker."""

    embedded = "embedded"
    mosquitto = "mosquitto"


@app.callback()
def serve(
    state: State = STATE,
    role: Annotated[Role, typer.Option(help="One role alone, or all under a supervisor.")] = Role.all,
    broker: Annotated[Broker | None, typer.Option(help="MQTT broker; kept in coordinator.toml.")] = None,
    signer_state: Annotated[
        Path | None, typer.Option(help="The signer's folder with its keys; elsewhere in production.")
    ] = None,
    url: Annotated[str, typer.Option(help="Signer elsewhere: its coordinator, for example https://host:8443.")] = "",
    ca: Annotated[Path | None, typer.Option(help="Signer elsewhere: copy of the coordinator's pki/ca.crt.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Signer elsewhere: copy of the coordinator's tokens/signer, mode 0600.")
    ] = None,
    production: Annotated[
        bool, typer.Option("--production", help="Make no offline keys here; kept in coordinator.toml.")
    ] = False,
    signer_here: Annotated[
        bool, typer.Option("--signer-here", help="In production: run the signer beside the coordinator all the same.")
    ] = False,
    init_only: Annotated[bool, typer.Option("--init-only", help="Make the state folder and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a coordinator; its state folder is made on first use.

    It listens on 127.0.0.1 and logs on stderr. Stop it with Ctrl-C or SIGTERM.

    Example: fieldfare serve --state state --broker mosquitto

    A signer on another machine needs no state folder, only its own:

    fieldfare serve --role signer --signer-state keys --url https://127.0.0.1:8443 --ca ca.crt --token-file token

    With --production no key of root, targets or bundles is made here, and no signer runs here: see `fieldfare keys`.
    """
    from coordinator import roles, setup, supervisor

    os.umask(0o077)  # what is written here is this user's alone, unless it says otherwise
    roles.log_to_stderr()
    if url or ca or token_file:
        if role is not Role.signer or not (url and ca and token_file and signer_state):
            raise typer.BadParameter("a signer elsewhere is: --role signer --signer-state --url --ca --token-file")
        roles.remote_signer(signer_state.resolve(), url, ca, token_file)
        return
    state, folder = state.resolve(), (signer_state or state / "signer").resolve()
    if role in {Role.all, Role.coordinator}:
        keys = folder if role is Role.all else None  # the signer's keys are not made where it does not run
        overrides = {"mode": "production"} if production else None
        config = setup.init(state, broker=broker.value if broker else None, overrides=overrides, signer_state=keys)
        if config.mode == "production" and not signer_here:
            setup.check_no_offline_keys(folder)
        if role is Role.all:
            _tell(state, config.host, config.api_port, config.broker_port, as_json=as_json)
    if init_only:
        return
    match role:
        case Role.all:
            supervisor.run(state, folder, signer_here=signer_here)
        case Role.broker:
            roles.broker(state)
        case Role.coordinator:
            roles.coordinator(state)
        case Role.signer:
            roles.signer(state, folder, beside=signer_here)


def _tell(state: Path, host: str, api_port: int, broker_port: int, *, as_json: bool) -> None:
    from coordinator.commands import print_json

    url, broker = f"https://{host}:{api_port}", f"{host}:{broker_port}"
    if as_json:
        print_json({"state": str(state), "url": url, "broker": broker})
    else:
        typer.echo(f"coordinator {url}, broker {broker}, state {state}", err=True)
