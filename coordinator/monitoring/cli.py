"""`fieldfare drift`: what the fleet's profiles say."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.commands import STATE, AsJson, State, connect, moment, print_json, print_table, watch

if TYPE_CHECKING:
    from coordinator.records import Alert

app = typer.Typer(
    help="Drift of the fleet: report, alerts, watch.", no_args_is_help=True, pretty_exceptions_enable=False
)


@app.command()
def report(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[int | None, typer.Option(help="Version; without it the newest that sent profiles.")] = None,
    cohort: Annotated[str, typer.Option(help="Devices, as in `fieldfare devices list`.")] = "all",
    since: Annotated[float | None, typer.Option(help="Only profiles since then, seconds since the epoch.")] = None,
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """Compare the devices with the bundle's reference, and each with its own past.

    Example: fieldfare drift report digits --version 1 --json
    """
    query = {"model": model, "version": version, "since": since, "cohort": cohort}
    with connect(state) as client:
        found = client.get("/v1/drift", dict[str, Any], **query)
    if as_json:
        print_json(found)
    else:
        _show(found)


@app.command("alerts")
def list_alerts(state: State = STATE, as_json: AsJson = False) -> None:
    """List alerts, the newest first.

    Example: fieldfare drift alerts --json
    """
    with connect(state) as client:
        alerts = client.alerts()
    if as_json:
        print_json(alerts)
    else:
        _show_alerts(alerts)


@app.command("watch")
def watch_alerts(
    seconds: Annotated[float, typer.Option(help="Stop after so many seconds.")] = 3600.0,
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """Wait for the next alert and show it; exit 1 if none came.

    Example: fieldfare drift watch --seconds 600
    """
    import time

    deadline = time.monotonic() + seconds
    with connect(state) as client:
        known = {alert.id for alert in client.alerts()}
        fresh = watch(
            lambda: [alert for alert in client.alerts() if alert.id not in known],
            lambda _alerts: None,
            lambda alerts: bool(alerts) or time.monotonic() >= deadline,
            poll_s=0.5,
        )
    if as_json:
        print_json(fresh)
    elif fresh:
        _show_alerts(fresh)
    if not fresh:
        raise typer.Exit(1)


def _show(found: dict[str, Any]) -> None:
    typer.echo(f"{found['model']}:{found['version']}, cohort {found['cohort']}")
    if found["suppressed"]:
        typer.echo(found["suppressed"])
        return
    typer.echo(f"{found['devices']} devices, {found['samples']} samples, against the bundle's reference:")
    rows = [
        (
            each["feature"],
            f"{each['psi']:.3f}",
            f"{each['p_value']:.2g}",
            "drifted" if each["drifted"] else "",
            f"{each['heterogeneity']:.3f}",
        )
        for each in found["features"]
    ]
    print_table(("feature", "psi", "p", "", "heterogeneity"), rows)
    accuracy = found["estimated_accuracy"]
    shown = ["-" if accuracy[name] is None else f"{accuracy[name]:.3f}" for name in ("reference", "recent")]
    typer.echo(f"estimated accuracy: {shown[0]} -> {shown[1]} (from confidence; blind to changed meaning)")
    drifting = found["drifting"]
    if drifting["suppressed"]:
        typer.echo(drifting["suppressed"])
        return
    typer.echo(f"{len(drifting['devices'])} of {drifting['tested']} devices drift against their own past")
    for each in drifting["devices"]:
        typer.echo(f"  {each['device']}: {each['feature']} PSI {each['psi']:.3f}, p {each['p_value']:.2g}")


def _show_alerts(alerts: "list[Alert]") -> None:
    rows = [
        (
            alert.id,
            moment(alert.created_at),
            f"{alert.model}:{alert.version}",
            alert.feature,
            f"{alert.statistic:.3f}",
            f"{alert.p_value:.2g}",
            len(alert.cohort),
            alert.state,
            alert.run or "-",
        )
        for alert in alerts
    ]
    print_table(("alert", "raised", "model", "feature", "psi", "p", "devices", "state", "run"), rows)
