"""The process of one job: `python -m coordinator.jobs.worker --state DIR --job ID`.

It claims the job, runs its kind, and writes progress and outcome to the database itself, so that it needs no
coordinator to live on. Two workers for one job are harmless: only one can claim it.
"""

import argparse
import logging
import os
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Engine, select

from contract.errors import ContractError
from coordinator import config
from coordinator.client import Client, ClientError, JobContext
from coordinator.errors import CoordinatorError, SetupError
from coordinator.jobs import processes
from coordinator.jobs.tables import jobs
from coordinator.storage import open_engine

GROUP = "fieldfare.jobs"
REPORT_S = 0.2  # progress is written at most this often, unless the message is new

Run = Callable[[JobContext], dict[str, Any]]
logger = logging.getLogger(__name__)


def load(kind: str) -> Run:
    """The callable of a job kind.

    Raises:
        SetupError: nothing installed offers it, or it needs a package that is missing.
    """
    offered = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    if kind not in offered:
        known = ", ".join(sorted(offered)) or "none"
        raise SetupError(f"no installed package offers the job kind {kind!r}; the kinds are: {known}")
    try:
        run: Run = offered[kind].load()
    except ImportError as error:
        raise SetupError(
            f"job kind {kind!r} needs a package that is not installed: {error.name or error}; "
            "install fieldfare[all] where the coordinator runs"
        ) from error
    return run


class Record:
    """One job's row, as its worker writes it."""

    def __init__(self, engine: Engine, job: str) -> None:
        self._engine = engine
        self._job = job
        self._reported = (0.0, "")

    def claim(self, now: float) -> tuple[str, dict[str, Any], bool] | None:
        """Make the job this process's own; gives kind, spec and whether it ran before, or None if it is taken."""
        pid = os.getpid()
        waiting = jobs.update().where(jobs.c.id == self._job, jobs.c.state == "queued")
        values = {"state": "running", "pid": pid, "pid_started": processes.started(pid), "attempt": jobs.c.attempt + 1}
        with self._engine.begin() as connection:
            began = connection.execute(select(jobs.c.started_at).where(jobs.c.id == self._job)).scalar()
            values["started_at"] = now if began is None else began
            if connection.execute(waiting.values(**values)).rowcount != 1:
                return None
            row = connection.execute(select(jobs.c.kind, jobs.c.spec).where(jobs.c.id == self._job)).one()
        return row.kind, row.spec, began is not None

    def report(self, fraction: float, message: str) -> None:
        """Write progress in [0, 1]."""
        now = time.monotonic()
        if now - self._reported[0] < REPORT_S and message == self._reported[1] and fraction < 1:
            return
        self._reported = (now, message)
        self._write(progress=min(1.0, max(0.0, float(fraction))), message=message)

    def end(self, state: str, **values: object) -> None:
        """Write the outcome."""
        self._write(state=state, finished_at=time.time(), pid=None, pid_started=None, **values)

    def _write(self, **values: object) -> None:
        mine = jobs.update().where(jobs.c.id == self._job, jobs.c.state == "running", jobs.c.pid == os.getpid())
        with self._engine.begin() as connection:
            connection.execute(mine.values(**values))


def work(state: Path, job: str) -> int:
    """Run one job to its end; returns the exit status of the process."""
    engine = open_engine(config.load(state).database_url(state))
    try:
        record = Record(engine, job)
        claimed = record.claim(time.time())
        if claimed is None:
            logger.info("job %s is not waiting, another worker has it", job)
            return 0
        return _run(record, state, job, claimed)
    finally:
        engine.dispose()


def _run(record: Record, state: Path, job: str, claimed: tuple[str, dict[str, Any], bool]) -> int:
    kind, spec, resumed = claimed
    try:
        run = load(kind)
        with Client.from_state(state) as client:
            context = JobContext(
                id=job,
                spec=spec,
                folder=state / "jobs" / job,
                state=state,
                client=client,
                resumed=resumed,
                report=record.report,
            )
            result = msgspec.to_builtins(run(context))
    except (ClientError, ContractError, CoordinatorError) as error:
        logger.exception("job %s (%s) failed", job, kind)
        record.end("failed", error=str(error))
        return 1
    except Exception as error:  # whatever a job raises is its outcome, and must be on record
        logger.exception("job %s (%s) failed", job, kind)
        record.end("failed", error=f"{type(error).__name__}: {error}")
        return 1
    record.end("succeeded", result=result, progress=1.0)
    return 0


def main() -> None:
    """Entry of the process."""
    parser = argparse.ArgumentParser(description="Run one job of a coordinator; started by its job runner.")
    parser.add_argument("--state", type=Path, required=True, help="the coordinator's state folder")
    parser.add_argument("--job", required=True, help="id of the job")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    raise SystemExit(work(options.state, options.job))


if __name__ == "__main__":
    main()
