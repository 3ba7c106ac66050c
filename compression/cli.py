"""`fieldfare compress`: variants of a version by recipes or by search, measured, and the bundle of the one chosen."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from compression import imported_cli
from coordinator.commands import STATE, AsJson, State, connect, print_json, print_table

if TYPE_CHECKING:
    import click

    from coordinator.client import Client, Job


class _Group(TyperGroup):
    """`fieldfare compress digits:1 …` is `fieldfare compress run digits:1 …`."""

    def parse_args(self, ctx: "click.Context", args: list[str]) -> list[str]:
        """Put `run` before what is neither a command nor a question for help."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Group,
    help="Make a version smaller: recipes, search, measurement, gates and reports.",
    epilog="Example: fieldfare compress digits:1 --recipe tiny --recipe balanced",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.command("inspect")(imported_cli.inspect)
app.command("import")(imported_cli.bring_in)

ModelVersion = Annotated[str, typer.Argument(metavar="MODEL:VERSION", help="In the registry, for example digits:1.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


@app.command()
def run(
    model: ModelVersion,
    recipe: Annotated[
        list[str], typer.Option("--recipe", help="Ready recipe, or a .toml file; may be given several times.")
    ] = [],  # noqa: B006 typer copies it
    search: Annotated[bool, typer.Option("--search", help="Look for recipes; needs --budget.")] = False,
    budget: Annotated[
        str, typer.Option(help="What the variant must hold, as in 'size<=64KiB, p95<=2ms, drop<=0.5pt'; searches.")
    ] = "",
    minutes: Annotated[float, typer.Option(help="Of searching.")] = 15.0,
    trials: Annotated[int, typer.Option(help="Of a search, at most.")] = 200,
    seed: Annotated[int, typer.Option(help="Of a search's choices.")] = 0,
    gates: Annotated[
        Path | None, typer.Option(help="TOML file of what must hold to ship, beside the model's own gates.")
    ] = None,
    task: Annotated[str, typer.Option(help="Task instead of the version's own.")] = "",
    hardware_class: Annotated[
        list[str], typer.Option("--hardware-class", help="Devices that may run the bundle; without it, any.")
    ] = [],  # noqa: B006
    report: Annotated[
        Path | None, typer.Option(help="Write the report to this .html file, and a .png beside it.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start the job, print its id, do not wait.")] = False,
    quiet: Quiet = False,
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """Make variants of a version, measure them, and build the bundle of the smallest that may ship.

    A job does it on the coordinator's machine: when this command is stopped the job goes on, and a job that was killed
    goes on where it was.

    Example: fieldfare compress digits:1 --recipe tiny --recipe mine.toml --report digits.html

    Example: fieldfare compress digits:1 --search --budget "size<=64KiB, p95<=2ms, drop<=0.5pt" --minutes 15
    """
    from compression import request

    if report is not None:
        _check_page(report)
    with connect(state) as client:
        spec = request.spec(
            client,
            model,
            recipes=recipe,
            search={"budget": budget, "minutes": minutes, "trials": trials, "seed": seed} if search or budget else None,
            gates=gates,
            task=task,
            hardware_classes=hardware_class,
        )
        job = client.create_job("compress", spec)
        if detach:
            print_json(job) if as_json else typer.echo(job.id)
            return
        job = _follow(client, job, shown=not (quiet or as_json))
        result = job.result or {}
        if report is not None and "report" in result:
            _save(client, result, report, told=not as_json)
        if as_json:
            print_json(job)
        elif job.state == "succeeded":
            _show(client, result)
    reason = f"job {job.id} {job.state}: {job.error or 'no reason given'}"
    if job.state != "succeeded" or not result["chosen"]:
        typer.echo(f"fieldfare: {result.get('refused') or reason}", err=True)
        raise typer.Exit(1)


@app.command()
def bench(
    bundle: Annotated[str, typer.Argument(help="Beginning of its SHA-256, or MODEL:VERSION for the newest of these.")],
    on: Annotated[str, typer.Option("--on", metavar="DEVICE", help="An enrolled device that may be asked.")],
    wait: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 600.0,
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """Have a signed bundle measured on a device: latency on one thread and on all, load time, memory.

    The bundle is verified and pulled as for a rollout and never activated. The owner must allow it: remote.bench in
    agent.toml. The registry keeps the result for the device's hardware class, and gates use the newest.

    Example: fieldfare compress bench digits:1 --on meter-1
    """
    from compression.bench import bench as ask

    with connect(state) as client:
        made = ask(client, bundle, on, timeout_s=wait, on_progress=lambda phrase: typer.echo(phrase, err=True))
    if as_json:
        print_json(made)
        return
    found = made.measured
    rows = [
        ("hardware class", made.hardware_class),
        ("runtime", found.runtime),
        ("one thread", f"p50 {found.p50_us:.1f} us, p95 {found.p95_us:.1f} us"),
        (f"{found.threads} threads", f"p50 {found.p50_threads_us:.1f} us, p95 {found.p95_threads_us:.1f} us"),
        ("load", f"{found.load_us / 1000:.1f} ms"),
        ("peak memory", f"{found.peak_bytes / 2**20:.1f} MiB, the whole process"),
    ]
    print_table(["", on], rows)


def _follow(client: "Client", job: "Job", *, shown: bool) -> "Job":
    """Wait for a job; on a terminal with a bar, else with a line for each thing that begins."""
    from coordinator.client import JobFailedError

    try:
        if not shown:
            return client.wait_job(job.id, timeout_s=float("inf"))
        if not sys.stderr.isatty():
            return client.wait_job(job.id, timeout_s=float("inf"), on_progress=_line)
        return _with_bar(client, job)
    except JobFailedError as error:
        return error.job
    except KeyboardInterrupt:
        typer.echo(
            f"\njob {job.id} goes on; see: fieldfare jobs watch {job.id}, or: fieldfare jobs cancel {job.id}", err=True
        )
        raise typer.Exit(130) from None


def _line(job: "Job") -> None:
    if job.message:
        typer.echo(f"{job.progress:4.0%}  {job.message}", err=True)


def _with_bar(client: "Client", job: "Job") -> "Job":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (BarColumn(30), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(job.message or "queued", total=1.0)
        return client.wait_job(
            job.id,
            timeout_s=float("inf"),
            on_progress=lambda seen: progress.update(bar, completed=seen.progress, description=seen.message),
        )


def _show(client: "Client", result: dict[str, Any]) -> None:
    from compression.report.page import COLUMNS
    from compression.request import content_of

    content = content_of(client, result)
    rows = [
        (
            "*" if each.name == content.chosen else "",
            each.name,
            *(column.cell(each.report) for column in COLUMNS),
            "yes" if each.passed else ("by override: " if each.overridden else "") + "; ".join(each.reasons),
        )
        for each in content.variants
    ]
    print_table(["", "VARIANT", *(column.title for column in COLUMNS), "MAY SHIP"], rows)
    bundle = result["bundle"]
    if bundle is None:
        return
    typer.echo(f"\nbundle of {result['chosen']}: {bundle['sha256']}, {bundle['size']} bytes, waits for the signer")
    if result["training"]:
        typer.echo(f"it cannot be trained on devices: {result['training']}")


def _check_page(path: Path) -> None:
    from compression.errors import CompressionError

    if path.suffix == ".png":
        raise CompressionError(f"{path}: name the .html file of the report; its .png is written beside it")


def _save(client: "Client", result: dict[str, Any], path: Path, *, told: bool) -> None:
    for target, kind in ((path, "html"), (path.with_suffix(".png"), "png")):
        part = target.with_name(target.name + ".part")
        part.write_bytes(client.get_blob(result["report"][kind]))
        part.replace(target)
    if told:
        typer.echo(f"report: {path} and {path.with_suffix('.png')}", err=True)


@app.command()
def report(
    job: Annotated[str, typer.Argument(help="Id of a compress job that has ended.")],
    out: Annotated[Path, typer.Option(help="The .html file; a .png is written beside it.")] = Path("compression.html"),
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """Write the report of a compression, or print what it is made from with --json.

    Example: fieldfare compress report 3f2a94c01b7e --out digits.html
    """
    from compression.errors import CompressionError
    from compression.request import content_of

    _check_page(out)
    with connect(state) as client:
        found = client.job(job)
        if found.kind != "compress" or "report" not in (found.result or {}):
            raise CompressionError(f"job {job} ({found.kind}, {found.state}) has no report of a compression")
        if as_json:
            print_json(content_of(client, found.result or {}))
            return
        _save(client, found.result or {}, out, told=True)


@app.command()
def recipes(
    name: Annotated[str, typer.Argument(help="Show this one, a ready name or a file; without it, list them.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the ready recipes, or show one as TOML to begin your own with.

    Example: fieldfare compress recipes tiny > mine.toml
    """
    import msgspec

    from compression import recipe
    from compression.report.page import recipe_text

    found = [recipe.load(name)] if name else [recipe.load(each) for each in recipe.ready_names()]
    if as_json:
        print_json(found)
    elif name:
        typer.echo(recipe_text(msgspec.to_builtins(found[0])))
    else:
        rows = [(r.name, " > ".join(stage.name for stage in r.stages), r.description) for r in found]
        print_table(["RECIPE", "STAGES", "WHAT FOR"], rows)


@app.command("export")
def export_model(
    model: ModelVersion,
    out: Annotated[Path, typer.Option(help="The file to write; its ending says the format: .onnx.")],
    task: Annotated[str, typer.Option(help="Task instead of the version's own.")] = "",
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """Write a version for servers, checked on validation samples against the model.

    Example: fieldfare compress export digits:1 --out digits.onnx
    """
    from compression import request, source
    from compression.errors import RecipeError
    from compression.lanes import onnx

    if out.suffix != ".onnx":
        raise RecipeError(f"{out}: only .onnx can be written; for a device's .tflite see: fieldfare compress run")
    with connect(state) as client:
        name, version = request.model_version(client, model)
        made = onnx.export(source.load(client, name, version, task), out)
    if as_json:
        print_json(made)
        return
    typer.echo(
        f"{out}: {made.bytes} bytes, opset {made.opset}; on {made.samples} validation samples accuracy "
        f"{made.accuracy:.3f}, logits within {made.largest_difference:.1e} of the model's"
    )
