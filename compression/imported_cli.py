"""`fieldfare compress inspect` and `fieldfare compress import`: artifacts from elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.commands import STATE, AsJson, State, connect, print_json

if TYPE_CHECKING:
    from cloud.learning.task import Task

Artifact = Annotated[Path, typer.Argument(metavar="FILE", help="A .tflite.")]


def inspect(file: Artifact, as_json: AsJson = False) -> None:
    """Show what is in a .tflite (operations, quantization, input, output, metadata), and whether the runtime takes it.

    Example: fieldfare compress inspect model.tflite
    """
    import msgspec

    from compression import inspection, trial

    content = _read(file)
    found, refused = inspection.inspect(content), trial.refusal(content)
    if as_json:
        print_json({**msgspec.to_builtins(found), "refused": refused})
        return
    for line in inspection.lines(found):
        typer.echo(line)
    typer.echo(f"runtime    {'refuses it: ' + refused if refused else 'takes it'}")


def bring_in(  # noqa: PLR0917 each is an option
    file: Artifact,
    model: Annotated[str, typer.Option(help="Model that it becomes a version of; a new name makes a new model.")],
    task: Annotated[str, typer.Option(help="Task with labelled samples, labels and transform.")] = "",
    samples: Annotated[
        Path | None,
        typer.Option(help="Instead of a task: safetensors with x (what the artifact takes) and y (classes)."),
    ] = None,
    labels: Annotated[str, typer.Option(help="With --samples: names of the classes, with commas between them.")] = "",
    gates: Annotated[
        Path | None, typer.Option(help="TOML file of what must hold to ship, beside the model's own gates.")
    ] = None,
    hardware_class: Annotated[
        list[str], typer.Option("--hardware-class", help="Devices that may run the bundle; without it, any.")
    ] = [],  # noqa: B006 typer copies it
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """Register a .tflite from elsewhere as a version of a model, measure it, and build a bundle for inference.

    Example: fieldfare compress import model.tflite --model lamps --task ./lamps
    """
    from compression import gate, imported

    content = _read(file)
    given = _task(task, samples, labels)
    chosen = gate.load(gates) if gates is not None else None
    with connect(state) as client:
        made = imported.register(client, content, model, given, gates=chosen, hardware_classes=hardware_class)
    if as_json:
        print_json(made)
    else:
        report, bundle = made.report, made.bundle
        typer.echo(
            f"{made.model}:{made.version} {made.variant}: {report.bytes:,} bytes, {made.inspection.quantization}"
        )
        typer.echo(f"test accuracy {100 * (report.accuracy or 0):.2f} %, {report.p50_us:.0f} us (p50)")
        if bundle is not None:
            typer.echo(f"bundle {bundle.sha256}, {bundle.size:,} bytes, waits for the signer; devices cannot train it")
    if made.reasons:
        typer.echo(f"fieldfare: {made.model}:{made.version} may not ship: {'; '.join(made.reasons)}", err=True)
        raise typer.Exit(1)


def _task(ref: str, samples: Path | None, labels: str) -> "Task":
    from cloud.learning.task import load_task
    from compression import imported
    from compression.errors import RecipeError

    if bool(ref) == (samples is not None):
        raise RecipeError("give either --task, or --samples with --labels")
    if samples is None:
        return load_task(ref)
    names = [name.strip() for name in labels.split(",") if name.strip()]
    if len(names) < 2:
        raise RecipeError("--labels: give the names of the classes, in the order of the artifact's outputs")
    return imported.task_of_samples(samples, names)


def _read(file: Path) -> bytes:
    from compression.errors import ArtifactError
    from compression.lanes import onnx

    if file.suffix == ".onnx":
        raise ArtifactError(onnx.no_way_in(str(file)))
    try:
        return file.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{file}: cannot be read: {error.strerror}") from error
