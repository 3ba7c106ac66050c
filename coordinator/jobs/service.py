"""What jobs there are and how they stand. Processes are the runner's and the workers' business."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, RowMapping, select

from contract import codec
from coordinator import records
from coordinator.errors import ConflictError, InvalidError, NotFoundError
from coordinator.jobs.tables import jobs
from coordinator.sql import insert_once, to_record
from coordinator.storage import Storage

LOG_BYTES = 1024 * 1024  # what is shown of a log: its end
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


class Jobs:
    """The queue and its records, over Storage; `folder` holds one folder for each job."""

    def __init__(self, storage: Storage, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._engine = storage.engine
        self.folder = folder
        self._clock = clock

    def create(self, kind: str, spec: Mapping[str, Any], *, id: str | None = None) -> records.Job:  # noqa: A002 its name
        """Queue a job; see `queue`."""
        name = uuid4().hex[:12] if id is None else id
        with self._engine.begin() as connection:
            self.queue(connection, id=name, kind=kind, spec=spec, now=self._clock())
        return self.get(name)

    def queue(
        self,
        connection: Connection,
        *,
        id: str,  # noqa: A002 its name
        kind: str,
        spec: Mapping[str, Any],
        now: float,
    ) -> None:
        """Queue a job in the caller's transaction; the same job under the same id is queued once.

        Raises:
            InvalidError: an id that cannot name a folder.
            ConflictError: another job has this id.
        """
        if not 1 <= len(id) <= 64 or not set(id) <= _ID_CHARACTERS:
            raise InvalidError(f"job id {id[:80]!r}: use 1 to 64 lower-case letters, digits and hyphens")
        row = {"id": id, "kind": kind, "spec": dict(spec), "state": "queued", "created_at": now}
        row |= {"attempt": 0, "progress": 0.0, "message": ""}
        if insert_once(connection, jobs, row):
            return
        old = connection.execute(select(jobs.c.kind, jobs.c.spec).where(jobs.c.id == id)).one()
        if old.kind != kind or codec.encode_json(old.spec) != codec.encode_json(dict(spec)):
            raise ConflictError(f"job {id} exists already and is another one ({old.kind})")

    def get(self, id: str) -> records.Job:  # noqa: A002 its name
        """One job.

        Raises:
            NotFoundError: no such job.
        """
        with self._engine.begin() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == id)).mappings().first()
        if row is None:
            raise NotFoundError(f"no job {id}; see: fieldfare jobs list")
        return _record(row)

    def all(self) -> list[records.Job]:
        """All jobs, newest first."""
        with self._engine.begin() as connection:
            rows = connection.execute(select(jobs).order_by(jobs.c.created_at.desc())).mappings().all()
        return [_record(row) for row in rows]

    def log(self, id: str) -> str:  # noqa: A002 its name
        """The end of what a job printed, at most `LOG_BYTES`; empty before it began.

        Raises:
            NotFoundError: no such job.
        """
        self.get(id)
        try:
            with (self.folder / id / "log").open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - LOG_BYTES))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def cancel(self, id: str) -> records.Job:  # noqa: A002 its name
        """Ask for a job's end; see `request_cancel`.

        Raises:
            NotFoundError: no such job.
        """
        with self._engine.begin() as connection:
            self.request_cancel(connection, id, now=self._clock())
        return self.get(id)

    def request_cancel(self, connection: Connection, id: str, *, now: float) -> None:  # noqa: A002 its name
        """Ask for a job's end, in the caller's transaction: at once where it waits, else by the runner.

        A job that has ended stays as it is.
        """
        mine = jobs.c.id == id
        ended = {"state": "cancelled", "error": "cancelled before it began", "cancelled_at": now, "finished_at": now}
        connection.execute(jobs.update().where(mine, jobs.c.state == "queued").values(**ended))
        running = jobs.update().where(mine, jobs.c.state == "running", jobs.c.cancelled_at.is_(None))
        connection.execute(running.values(cancelled_at=now))


def _record(row: RowMapping) -> records.Job:
    return to_record(row, records.Job)
