"""`fieldfare rollouts`: move a cohort to a bundle, watch it, stop it."""

from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.commands import STATE, AsJson, State, connect, moment, print_json, print_table, watch

if TYPE_CHECKING:
    from coordinator.records import Rollout

app = typer.Typer(
    help="Rollouts: move a cohort to a signed bundle, in waves.", no_args_is_help=True, pretty_exceptions_enable=False
)

_ENDED = frozenset({"done", "aborted", "failed"})
Waves = Annotated[list[float], typer.Option("--wave", help="Devices (5) or a fraction (0.1) in the next wave.")]


@app.command()
def start(
    bundle: Annotated[str, typer.Argument(help="SHA-256 of the bundle, see: fieldfare models bundles")],
    cohort: Annotated[str, typer.Option(help="all, name=a,b, tag:site=north, class=x86-64; joined by ';'.")] = "all",
    wave: Waves = [],  # noqa: B006 - typer copies it
    max_failures: Annotated[int, typer.Option(help="Refusals, rollbacks and time-outs that are borne.")] = 0,
    device_timeout_s: Annotated[float, typer.Option(help="Seconds from the offer to the receipt.")] = 300.0,
    health_timeout_s: Annotated[
        float, typer.Option(help="Seconds in which a device must pass its probation before the next wave; 0: no wait.")
    ] = 0.0,
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """Start a rollout; without --wave one canary goes first, then the rest.

    Example: fieldfare rollouts start 3f0c...9a --cohort tag:site=north --wave 1 --wave 0.2
    """
    with connect(state) as client:
        made = client.start_rollout(
            bundle,
            cohort=cohort,
            waves=wave or None,
            max_failures=max_failures,
            device_timeout_s=device_timeout_s,
            health_timeout_s=health_timeout_s,
        )
    if as_json:
        print_json(made)
    else:
        _show(made)


@app.command("list")
def list_rollouts(state: State = STATE, as_json: AsJson = False) -> None:
    """List rollouts, newest first.

    Example: fieldfare rollouts list --json
    """
    with connect(state) as client:
        found = client.rollouts()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            r.id,
            f"{r.model}:{r.version}",
            r.variant,
            r.cohort,
            f"{r.wave + 1}/{len(r.waves)}",
            r.state,
            moment(r.created_at),
        )
        for r in found
    ]
    print_table(["ROLLOUT", "MODEL", "VARIANT", "COHORT", "WAVE", "STATE", "STARTED"], rows)


@app.command()
def show(id: str, state: State = STATE, as_json: AsJson = False) -> None:  # noqa: A002 its name
    """Show one rollout with its devices and their reasons.

    Example: fieldfare rollouts show 7f2e...
    """
    with connect(state) as client:
        found = client.rollout(id)
    if as_json:
        print_json(found)
    else:
        _show(found)


@app.command("watch")
def watch_rollout(id: str, state: State = STATE, as_json: AsJson = False) -> None:  # noqa: A002 its name
    """Watch a rollout until it ends; exit code 1 if it did not end well.

    Example: fieldfare rollouts watch 7f2e...
    """
    with connect(state) as client:
        show_it = (lambda _: None) if as_json else _show
        found = watch(lambda: client.rollout(id), show_it, lambda rollout: rollout.state in _ENDED, poll_s=0.5)
    if as_json:
        print_json(found)
    if found.state != "done":
        raise typer.Exit(1)


@app.command()
def pause(id: str, state: State = STATE, as_json: AsJson = False) -> None:  # noqa: A002 its name
    """Offer it to no further wave.

    Example: fieldfare rollouts pause 7f2e...
    """
    with connect(state) as client:
        _print(client.pause_rollout(id), as_json=as_json)


@app.command()
def resume(id: str, state: State = STATE, as_json: AsJson = False) -> None:  # noqa: A002 its name
    """Go on with a paused rollout.

    Example: fieldfare rollouts resume 7f2e...
    """
    with connect(state) as client:
        _print(client.resume_rollout(id), as_json=as_json)


@app.command()
def abort(id: str, state: State = STATE, as_json: AsJson = False) -> None:  # noqa: A002 its name
    """End it; devices that activated keep the bundle, offers are withdrawn.

    Example: fieldfare rollouts abort 7f2e...
    """
    with connect(state) as client:
        _print(client.abort_rollout(id), as_json=as_json)


def _print(rollout: "Rollout", *, as_json: bool) -> None:
    if as_json:
        print_json(rollout)
    else:
        _show(rollout)


def _show(rollout: "Rollout") -> None:
    what = f"{rollout.model}:{rollout.version} {rollout.variant} to {rollout.cohort}"
    typer.echo(f"{rollout.id}: {what}: {rollout.state}{f' ({rollout.error})' if rollout.error else ''}")
    rows = [(device.device, device.wave + 1, device.state, device.reason) for device in rollout.devices]
    print_table(["DEVICE", "WAVE", "STATE", "REASON"], rows)
