"""`fieldfare jobs`: heavy work and how it goes."""

import json
from typing import Annotated

import typer

from coordinator.commands import STATE, AsJson, State, connect, moment, print_json, print_table

app = typer.Typer(
    help="Jobs: training, compression, federated runs.", no_args_is_help=True, pretty_exceptions_enable=False
)


@app.command("list")
def list_jobs(state: State = STATE, as_json: AsJson = False) -> None:
    """List jobs, newest first.

    Example: fieldfare jobs list --state state
    """
    with connect(state) as client:
        jobs = client.jobs()
    if as_json:
        print_json(jobs)
        return
    rows = [(j.id, j.kind, j.state, f"{j.progress:.0%}", j.error or j.message) for j in jobs]
    print_table(["ID", "KIND", "STATE", "DONE", "MESSAGE"], rows)


@app.command()
def show(id: str, state: State = STATE, as_json: AsJson = False) -> None:  # noqa: A002 its name on the command line
    """Show one job.

    Example: fieldfare jobs show 3f2a --state state
    """
    with connect(state) as client:
        job = client.job(id)
    if as_json:
        print_json(job)
        return
    facts = {"id": job.id, "kind": job.kind, "state": job.state, "attempt": job.attempt, "done": f"{job.progress:.0%}"}
    facts |= {"message": job.message, "error": job.error or "-", "started": moment(job.started_at)}
    facts |= {"finished": moment(job.finished_at), "spec": json.dumps(job.spec), "result": json.dumps(job.result)}
    print_table(["", ""], facts.items())


@app.command()
def start(
    kind: str,
    spec: Annotated[str, typer.Argument(help="What the job is to do, as JSON.")] = "{}",
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """Queue a job; SPEC is JSON.

    Example: fieldfare jobs start train '{"task": "digits", "model": "digits"}' --state state
    """
    try:
        fields = json.loads(spec)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"SPEC is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise typer.BadParameter("SPEC must be a JSON object")
    with connect(state) as client:
        job = client.create_job(kind, fields)
    print_json(job) if as_json else typer.echo(job.id)


@app.command()
def log(id: str, state: State = STATE, as_json: AsJson = False) -> None:  # noqa: A002 its name on the command line
    """Print the end of what a job wrote.

    Example: fieldfare jobs log 3f2a --state state
    """
    with connect(state) as client:
        text = client.job_log(id)
    print_json({"id": id, "log": text}) if as_json else typer.echo(text, nl=False)


@app.command()
def cancel(id: str, state: State = STATE, as_json: AsJson = False) -> None:  # noqa: A002 its name on the command line
    """Stop a job.

    Example: fieldfare jobs cancel 3f2a --state state
    """
    with connect(state) as client:
        job = client.cancel_job(id)
    print_json(job) if as_json else typer.echo(f"{job.id} {job.state}")


@app.command()
def watch(
    id: str,  # noqa: A002 its name on the command line
    state: State = STATE,
    as_json: AsJson = False,
    timeout_s: float = typer.Option(3600.0, "--timeout", help="Seconds to wait at most."),
) -> None:
    """Follow a job until it has ended; exits 1 if it failed.

    Example: fieldfare jobs watch 3f2a --state state
    """
    from coordinator.client import Job, JobFailedError

    def show_progress(job: Job) -> None:
        if not as_json:
            typer.echo(f"{job.state:10} {job.progress:4.0%}  {job.message}")

    with connect(state) as client:
        try:
            job = client.wait_job(id, timeout_s=timeout_s, on_progress=show_progress)
        except JobFailedError as error:
            job = error.job
            typer.echo(str(error), err=True)
    if as_json:
        print_json(job)
    if job.state != "succeeded":
        raise typer.Exit(1)
