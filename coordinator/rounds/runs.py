"""Runs and their committed rounds, as rows. Every function works in the caller's transaction."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Connection, RowMapping, insert, select, update

from contract.profile import Counts
from coordinator.errors import NotFoundError
from coordinator.rounds.settings import RunConfig
from coordinator.rounds.tables import instructions, run_rounds, runs

OPEN = ("queued", "running")


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        version: of the model that the run starts from.
        cohort: names of its devices, sorted.
        result_version: what it made, once it succeeded.
    """

    id: str
    model: str
    version: int
    bundle_sha256: str
    cohort: list[str]
    config: RunConfig
    alert: str | None
    job: str | None
    state: str
    result_version: int | None
    error: str
    created_at: float
    finished_at: float | None


@dataclass(frozen=True)
class RoundResult:
    """One committed round.

    Attributes:
        round: from 1; 0 measures the base.
        kind: `train` or `evaluate`.
        weights_sha256: what training gave, or what was evaluated.
        metrics: weighted by examples over the good replies.
        replies: good ones.
        failures: device to reason.
        counts: sum of the evaluated devices' profile counts.
        started_at, finished_at: seconds since the epoch.
    """

    round: int
    kind: str
    weights_sha256: str
    metrics: dict[str, float]
    replies: int
    failures: dict[str, str] = field(default_factory=dict)
    counts: Counts | None = None
    started_at: float = 0.0
    finished_at: float = 0.0


def create(connection: Connection, run: Run) -> None:
    """Insert a run."""
    connection.execute(insert(runs).values(**_columns(run)))


def get(connection: Connection, run: str) -> Run:
    """One run.

    Raises:
        NotFoundError: no such run.
    """
    row = connection.execute(select(runs).where(runs.c.id == run)).mappings().first()
    if row is None:
        raise NotFoundError(f"no run {run}; list them with: fieldfare rounds list")
    return _run(row)


def every(connection: Connection, *, limit: int = 200) -> list[Run]:
    """The newest runs first."""
    rows = connection.execute(select(runs).order_by(runs.c.created_at.desc(), runs.c.id).limit(limit)).mappings()
    return [_run(row) for row in rows]


def still_open(connection: Connection, bundle_sha256: str) -> Run | None:
    """A run on this bundle that has not ended, if there is one."""
    query = select(runs).where(runs.c.bundle_sha256 == bundle_sha256, runs.c.state.in_(OPEN))
    row = connection.execute(query.order_by(runs.c.created_at).limit(1)).mappings().first()
    return None if row is None else _run(row)


def start(connection: Connection, run: str) -> None:
    """Mark a queued run as running."""
    connection.execute(update(runs).where(runs.c.id == run, runs.c.state == "queued").values(state="running"))


def finish(
    connection: Connection, run: str, state: str, *, now: float, error: str = "", version: int | None = None
) -> None:
    """End an open run and expire what its devices have not answered; a run that has ended stays as it is."""
    query = update(runs).where(runs.c.id == run, runs.c.state.in_(OPEN))
    done = connection.execute(query.values(state=state, error=error, result_version=version, finished_at=now))
    if done.rowcount:
        waiting = instructions.c.state.in_(("queued", "sent"))
        connection.execute(update(instructions).where(instructions.c.run == run, waiting).values(state="expired"))


def commit(connection: Connection, run: str, result: RoundResult) -> None:
    """Insert a round's result."""
    values = {**vars(result), "counts": None if result.counts is None else msgspec.to_builtins(result.counts)}
    connection.execute(insert(run_rounds).values(run=run, **values))


def committed(connection: Connection, run: str) -> list[RoundResult]:
    """Results in the order of their rounds, training before evaluation."""
    query = select(run_rounds).where(run_rounds.c.run == run)
    rows = connection.execute(query.order_by(run_rounds.c.round, run_rounds.c.kind.desc())).mappings()
    return [_result(row) for row in rows]


def _columns(run: Run) -> dict[str, Any]:
    return {**vars(run), "config": msgspec.to_builtins(run.config)}


def _run(row: RowMapping) -> Run:
    return Run(**{**row, "config": msgspec.convert(row["config"], RunConfig)})


def _result(row: RowMapping) -> RoundResult:
    values = {name: value for name, value in row.items() if name != "run"}
    counts = None if row["counts"] is None else msgspec.convert(row["counts"], Counts)
    return RoundResult(**{**values, "counts": counts})
