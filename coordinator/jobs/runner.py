"""Starts, adopts and stops the processes of jobs.

A process is known again by its number and start time, so a coordinator that was killed finds its jobs running and
waits for them; one that died is started again, at most `ATTEMPTS` times.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, select

from coordinator.jobs import processes
from coordinator.jobs.tables import jobs
from coordinator.storage import Storage

ATTEMPTS = 3
KILL_AFTER_S = 5.0  # from the request to end to the signal that cannot be refused

logger = logging.getLogger(__name__)


class Runner:
    """One for each coordinator; `tick` is called a few times a second, from one thread."""

    def __init__(self, storage: Storage, state: Path, *, max_jobs: int, clock: Callable[[], float] = time.time) -> None:
        self._engine = storage.engine
        self._state = state.resolve()
        self._max_jobs = max_jobs
        self._clock = clock
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._asked: set[str] = set()  # jobs whose process was sent SIGTERM

    def tick(self) -> None:
        """Look after every job once."""
        ended = {job: child for job, child in self._children.items() if child.poll() is not None}
        with self._engine.begin() as connection:
            for job, child in ended.items():
                self._bury(connection, job, child.returncode)
            for row in connection.execute(select(jobs).where(jobs.c.state == "running")).all():
                self._look_after(connection, row)
            waiting = self._to_start(connection)
        for job in waiting:
            self._start(job)

    def stop(self) -> None:
        """End every process, as the coordinator ends; their jobs wait for the next start and are resumed then."""
        with self._engine.begin() as connection:
            running = connection.execute(select(jobs).where(jobs.c.state == "running")).all()
        alive = [row for row in running if self._alive(row)]
        for pid in {row.pid for row in alive} | {child.pid for child in self._children.values()}:
            processes.signal_group(pid, signal.SIGTERM)
        deadline = time.monotonic() + KILL_AFTER_S
        while any(self._alive(row) for row in alive) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in {row.pid for row in alive if self._alive(row)}:
            processes.signal_group(pid, signal.SIGKILL)
        for child in self._children.values():
            child.wait()
        self._children.clear()
        with self._engine.begin() as connection:
            for row in alive:
                again = {"state": "queued", "pid": None, "pid_started": None, "attempt": max(0, row.attempt - 1)}
                # cancelled ones stay `running` here and are found dead at the next start
                mine = jobs.c.id == row.id, jobs.c.state == "running", jobs.c.cancelled_at.is_(None)
                connection.execute(jobs.update().where(*mine).values(**again))

    def _alive(self, row: Row[Any]) -> bool:
        child = self._children.get(row.id)
        if child is not None and child.pid == row.pid:
            return child.poll() is None
        return row.pid is not None and processes.started(row.pid) == row.pid_started

    def _look_after(self, connection: Connection, row: Row[Any]) -> None:
        now = self._clock()
        mine = jobs.update().where(jobs.c.id == row.id, jobs.c.state == "running", jobs.c.attempt == row.attempt)
        if self._alive(row):
            if row.cancelled_at is not None:
                self._end(row, now)
            return
        self._children.pop(row.id, None)
        gone = {"pid": None, "pid_started": None}
        if row.cancelled_at is not None:
            values = {**gone, "state": "cancelled", "error": "cancelled", "finished_at": now}
        elif row.attempt >= ATTEMPTS:
            sentence = f"its process died {row.attempt} times without a word (killed, or out of memory?); see its log"
            values = {**gone, "state": "failed", "error": sentence, "finished_at": now}
        else:
            values = {**gone, "state": "queued"}
            logger.warning("the process of job %s (%s) died; it starts again", row.id, row.kind)
        connection.execute(mine.values(**values))
        self._asked.discard(row.id)

    def _end(self, row: Row[Any], now: float) -> None:
        if now > row.cancelled_at + KILL_AFTER_S:
            processes.signal_group(row.pid, signal.SIGKILL)
        elif row.id not in self._asked:
            self._asked.add(row.id)
            processes.signal_group(row.pid, signal.SIGTERM)

    def _bury(self, connection: Connection, job: str, status: int) -> None:
        """Forget a child that ended; if it never claimed its job, starting it again would not help."""
        del self._children[job]
        if status != 0:
            sentence = f"its process ended with status {status} before it began; see its log"
            values = {"state": "failed", "error": sentence, "finished_at": self._clock()}
            unclaimed = jobs.c.id == job, jobs.c.state == "queued"  # one that claimed it left it `running`
            connection.execute(jobs.update().where(*unclaimed).values(**values))

    def _to_start(self, connection: Connection) -> list[str]:
        running = set(connection.execute(select(jobs.c.id).where(jobs.c.state == "running")).scalars())
        queued = select(jobs.c.id).where(jobs.c.state == "queued").order_by(jobs.c.created_at)
        waiting = [job for job in connection.execute(queued).scalars() if job not in self._children]
        return waiting[: max(0, self._max_jobs - len(running | set(self._children)))]

    def _start(self, job: str) -> None:
        folder = self._state / "jobs" / job
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        command = [sys.executable, "-m", "coordinator.jobs.worker", "--state", str(self._state), "--job", job]
        with (folder / "log").open("ab") as log:
            self._children[job] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        logger.info("job %s started as process %d", job, self._children[job].pid)
