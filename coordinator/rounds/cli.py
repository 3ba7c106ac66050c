"""`fieldfare rounds`: federated training on the devices."""

from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.commands import STATE, AsJson, State, connect, moment, print_json, print_table, watch

if TYPE_CHECKING:
    from coordinator.records import Run

app = typer.Typer(
    help="Federated training on the devices: launch, list, show, watch, cancel.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

RunId = Annotated[str, typer.Argument(help="Id of the run.")]


@app.command()
def launch(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    cohort: Annotated[str, typer.Option(help="Devices, as in `fieldfare devices list`.")] = "all",
    rounds: Annotated[int, typer.Option(help="Training rounds.")] = 5,
    epochs: Annotated[int, typer.Option(help="Passes over the local data in a round.")] = 2,
    learning_rate: Annotated[float, typer.Option(help="Of the local steps.")] = 0.005,
    optimizer: Annotated[str, typer.Option(help="Of the local steps: sgd or adam.")] = "sgd",
    momentum: Annotated[float, typer.Option(help="SGD's momentum, or how Adam's first moments decay.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Share of a weight that goes, times the step.")] = 0.0,
    proximal_mu: Annotated[float, typer.Option(help="Above zero: FedProx with this strength.")] = 0.0,
    fraction: Annotated[float, typer.Option(help="Share of the cohort that trains in a round.")] = 1.0,
    min_replies: Annotated[int, typer.Option(help="Fewest good replies of a round; 0: two thirds.")] = 0,
    round_timeout_s: Annotated[float, typer.Option(help="Seconds that a round waits.")] = 120.0,
    seed: Annotated[int, typer.Option(help="Of sampling and shuffles.")] = 0,
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """Start federated rounds from the newest version that the cohort serves.

    Example: fieldfare rounds launch digits --cohort tag:site=north --rounds 5
    """
    settings = {
        "rounds": rounds,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "optimizer": optimizer,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "proximal_mu": proximal_mu,
        "fraction": fraction,
        "min_replies": min_replies,
        "round_timeout_s": round_timeout_s,
        "seed": seed,
    }
    with connect(state) as client:
        run = client.launch_run(model, cohort=cohort, settings=settings)
    if as_json:
        print_json(run)
    else:
        typer.echo(
            f"run {run.id} on {run.model}:{run.base_version}, {run.cohort}; see: fieldfare rounds watch {run.id}"
        )


@app.command("list")
def list_runs(state: State = STATE, as_json: AsJson = False) -> None:
    """List runs, the newest first.

    Example: fieldfare rounds list --json
    """
    with connect(state) as client:
        runs = client.runs()
    if as_json:
        print_json(runs)
        return
    rows = [
        (run.id, f"{run.model}:{run.base_version}", run.state, run.version or "-", moment(run.created_at))
        for run in runs
    ]
    print_table(("run", "from", "state", "version", "created"), rows)


@app.command()
def show(run: RunId, state: State = STATE, as_json: AsJson = False) -> None:
    """Show a run and its committed rounds.

    Example: fieldfare rounds show 3f2a91b0c4d7
    """
    with connect(state) as client:
        found = client.run(run)
    if as_json:
        print_json(found)
    else:
        _show(found)


@app.command("watch")
def watch_run(run: RunId, state: State = STATE, as_json: AsJson = False) -> None:
    """Watch a run until it ends; exit 1 unless it succeeded.

    Example: fieldfare rounds watch 3f2a91b0c4d7
    """
    from coordinator.records import FINISHED

    with connect(state) as client:
        found = watch(
            lambda: client.run(run),
            (lambda _run: None) if as_json else _show,
            lambda value: value.state in FINISHED,
            poll_s=0.5,
        )
    if as_json:
        print_json(found)
    if found.state != "succeeded":
        raise typer.Exit(1)


@app.command()
def cancel(run: RunId, state: State = STATE, as_json: AsJson = False) -> None:
    """Stop a run; the rounds that it committed stay.

    Example: fieldfare rounds cancel 3f2a91b0c4d7
    """
    with connect(state) as client:
        found = client.cancel_run(run)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"run {found.id}: {found.state}")


def _show(run: "Run") -> None:
    made = f", made version {run.version}" if run.version else ""
    typer.echo(f"run {run.id} from {run.model}:{run.base_version} on {run.cohort}: {run.state}{made}")
    if run.error:
        typer.echo(f"  {run.error}")
    rows = [
        (
            each.round,
            each.kind,
            f"{each.metrics.get('accuracy', float('nan')):.3f}",
            f"{each.metrics.get('loss', float('nan')):.3f}",
            each.replies,
            each.failures,
        )
        for each in run.rounds
    ]
    if rows:
        print_table(("round", "kind", "accuracy", "loss", "replies", "failures"), rows)
