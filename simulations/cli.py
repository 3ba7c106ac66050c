"""`fieldfare simulate`: federated rounds over virtual clients, in this process."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from cloud.learning.task import Task
    from contract.bundle import Bundle
    from simulations.run import Learning, RoundScore, Samples

app = typer.Typer(
    help="Federated rounds over virtual clients.",
    context_settings={"allow_interspersed_args": True},
)


@app.callback(invoke_without_command=True)
def simulate(
    task: Annotated[str, typer.Argument(help="Task: a folder, an installed name, or a package.")],
    engine: Annotated[
        str,
        typer.Option(help="cohort: all clients at once, in torch. device: the agent's own loop, one after the other."),
    ] = "cohort",
    bundle: Annotated[
        Path | None, typer.Option(help="Start from this bundle file's weights; `device` needs its training part.")
    ] = None,
    model: Annotated[str, typer.Option(help="The same, of NAME or NAME:VERSION in the registry.")] = "",
    state: Annotated[Path, typer.Option(envvar="FIELDFARE_STATE", help="State folder of the coordinator.")] = Path(
        "state"
    ),
    clients: Annotated[int, typer.Option(help="Virtual clients.")] = 10,
    rounds: Annotated[int, typer.Option(help="Training rounds.")] = 5,
    fraction: Annotated[float, typer.Option(help="Share of the clients that trains in a round.")] = 1.0,
    partition: Annotated[
        str,
        typer.Option(
            help="How samples are dealt out: iid; dirichlet:ALPHA, shards:N or labels:N (skewed classes); "
            "quantity:ALPHA (skewed sizes); natural (the task's own devices)."
        ),
    ] = "iid",
    alpha: Annotated[float | None, typer.Option(help="The same as --partition dirichlet:ALPHA.")] = None,
    partition_plot: Annotated[
        Path | None, typer.Option(help="Write a picture of the partition to this .png file.")
    ] = None,
    population: Annotated[
        Path | None,
        typer.Option(help="Train from disk: lay the samples out by client in this new folder, and map it."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Samples of a step; 0 takes the task's. `device` has the bundle's.")] = 0,
    path: Annotated[
        str,
        typer.Option(
            help="How the cohort engine trains: dense kernels, convolutions, vmap, one by one; without it, the fastest."
        ),
    ] = "",
    epochs: Annotated[int, typer.Option(help="Passes over a client's samples in a round.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Of the local steps.")] = 0.005,
    optimizer: Annotated[str, typer.Option(help="Of the local steps: sgd or adam.")] = "sgd",
    momentum: Annotated[float, typer.Option(help="SGD's momentum, or how Adam's first moments decay.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Share of a weight that goes, times the step.")] = 0.0,
    proximal_mu: Annotated[float, typer.Option(help="Above zero: FedProx with this strength.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of partition, sampling and shuffles.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the last round's weights to this .safetensors file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Deal a task's training samples out to virtual clients and train by Flower's strategy.

    Without --bundle and --model, round 1 starts from a fresh model of the task, and no coordinator is needed. Accuracy
    is on the task's test part.

    Example: fieldfare simulate digits --clients 200 --rounds 20 --fraction 0.1 --alpha 0.5

    Example: fieldfare simulate digits --bundle digits.zip --engine device --clients 20 --rounds 5
    """
    from cloud.learning.task import load_task
    from contract import tensors
    from contract.training import Optimizer
    from coordinator.rounds.settings import RunConfig
    from simulations import partition as partitions
    from simulations import picture
    from simulations.run import Samples, Scenario
    from simulations.run import simulate as run

    config = RunConfig(
        rounds=rounds,
        fraction=fraction,
        epochs=epochs,
        learning_rate=learning_rate,
        optimizer=cast(Optimizer, optimizer),
        momentum=momentum,
        weight_decay=weight_decay,
        proximal_mu=proximal_mu,
        seed=seed,
    )
    dealt = partitions.parse(partition if alpha is None else f"dirichlet:{alpha}")
    started = time.monotonic()
    loaded = load_task(task)
    data = loaded.load_data()
    parts = {name: data["part"] == name for name in ("train", "test")}
    train, test = (
        Samples(*(data[column][parts[name]] for column in ("x", "y", "device"))) for name in ("train", "test")
    )
    live = _Live(shown=sys.stderr.isatty() and not as_json)
    given = _bundle(bundle, model or loaded.name, state) if bundle or model or engine == "device" else None
    learning = _learning(
        loaded, given, train, test, engine=engine, batch=batch, path=path, seed=seed, folder=population
    )
    if not as_json:
        typer.echo("{path}, {chunk} clients side by side, {threads} threads".format(**learning.plan), err=True)
    outcome = run(
        learning,
        Scenario(clients, dealt, config),
        on_score=(lambda _score: None) if as_json else live.score,
        on_progress=live.client,
    )
    seconds = time.monotonic() - started
    if out is not None:
        _write(out, tensors.dump(outcome.weights))
    if partition_plot is not None:
        title = f"{loaded.name}: {dealt}"
        _write(partition_plot, picture.picture(train.y, outcome.parts, loaded.labels, title))
    if as_json:
        scores = [vars(score) for score in outcome.scores]
        sizes = [len(rows) for rows in outcome.parts]
        result: dict[str, object] = {"task": loaded.name, "partition": str(dealt), "plan": dict(learning.plan)}
        result |= {"rounds": scores, "client_samples": sizes, "seconds": seconds}
        typer.echo(json.dumps(result, indent=2))
    else:
        typer.echo(f"{picture.words(train.y, outcome.parts)}, {seconds:.1f} s")


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def _learning(
    task: "Task",
    given: "Bundle | None",
    train: "Samples",
    test: "Samples",
    *,
    engine: str,
    batch: int,
    path: str,
    seed: int,
    folder: Path | None,
) -> "Learning":
    from simulations.errors import SimulationError

    if engine not in {"cohort", "device"}:
        raise SimulationError(f"--engine {engine}: take cohort or device")
    if engine == "device":
        from simulations.device_loop import DeviceLoop

        if batch or path or folder:
            raise SimulationError("--batch, --path and --population are for --engine cohort")
        assert given is not None  # noqa: S101 the caller looked
        return DeviceLoop(given, train, test)
    from cloud import features
    from contract import tensors
    from contract.transform import Transform
    from simulations.cohort import learner
    from simulations.cohort.learning import CohortLearning

    return CohortLearning(
        learner.of_task(task, seed=seed),
        Transform(features.fit(task, train.x)) if given is None else given.transform,
        train,
        test,
        batch=batch or task.training.batch,
        start=None if given is None else tensors.load(given.files["weights"]),
        path=path,
        folder=folder,
    )


def _bundle(path: Path | None, model: str, state: Path) -> "Bundle":
    from contract import bundle
    from simulations.errors import SimulationError

    if path is not None:
        return bundle.unpack(path.read_bytes())
    from coordinator.client import Client

    name, _, wanted = model.partition(":")
    if wanted and not wanted.isdigit():
        raise SimulationError(f"--model {model}: give NAME or NAME:VERSION, for example digits:1")
    with Client.from_state(state, retry_s=5.0) as client:
        found = [each for each in client.bundles() if each.model == name and wanted in {"", str(each.version)}]
        if not found:
            raise SimulationError(f"no bundle of {model} is registered; build one, or give --bundle FILE")
        return bundle.unpack(client.get_blob(max(found, key=lambda each: (each.version, each.created_at)).sha256))


class _Live:
    """A line for each round that ended; below it, on a terminal, one that says which client is done."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._round = 0

    def client(self, kind: str, done: int) -> None:
        if self._shown:
            sys.stderr.write(f"\r\x1b[Kround {self._round}: {kind}, client {done} done")
            sys.stderr.flush()

    def score(self, score: "RoundScore") -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        self._round = score.round + 1
        name = "base" if score.round == 0 else f"round {score.round}"
        failed = f", {score.failed} failed" if score.failed else ""
        typer.echo(f"{name:<9} accuracy {score.accuracy:.4f}  loss {score.loss:.4f}  ({score.clients} clients{failed})")
