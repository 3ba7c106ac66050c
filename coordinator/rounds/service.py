"""Rounds as the rest of the coordinator sees them: launch, watch and cancel runs; carry instructions and replies."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import uuid4

import msgspec
from sqlalchemy import Connection, select

from contract.messages import Instruction, RoundReply, UploadBlock
from coordinator.errors import ConflictError, InvalidError
from coordinator.jobs.tables import jobs
from coordinator.rounds import delivery, intake, runs, serving
from coordinator.rounds.runs import RoundResult, Run
from coordinator.rounds.settings import RunConfig, check
from coordinator.rounds.tables import runs as runs_table
from coordinator.sql import take_turns
from coordinator.storage import Storage


class JobQueue(Protocol):
    """What rounds need of the jobs: `coordinator.jobs.service.Jobs` has it."""

    def queue(self, connection: Connection, *, id: str, kind: str, spec: Mapping[str, Any], now: float) -> None:  # noqa: A002 its name
        """Queue a job in the caller's transaction."""

    def request_cancel(self, connection: Connection, id: str, *, now: float) -> None:  # noqa: A002 its name
        """Ask for a job's end in the caller's transaction."""


@dataclass(frozen=True)
class RunStatus:
    """A run with its committed rounds."""

    run: Run
    rounds: list[RoundResult]


class Rounds:
    """Federated runs. The run itself is a job (`coordinator.rounds.job`) in a process of its own."""

    def __init__(
        self,
        storage: Storage,
        *,
        jobs: JobQueue,
        cohort: Callable[[Connection, str], Sequence[str]],
        smallest_cohort: int,
    ) -> None:
        """Compose the service.

        Args:
            storage: database and blobs.
            jobs: where runs are queued.
            cohort: names of the devices that a cohort query finds; raises CallerError.
            smallest_cohort: a run on fewer devices is refused.
        """
        self._storage = storage
        self._jobs = jobs
        self._cohort = cohort
        self._smallest = smallest_cohort

    def launch_query(
        self,
        connection: Connection,
        *,
        model: str,
        cohort: str,
        settings: Mapping[str, Any],
        now: float,
        version: int | None = None,
    ) -> Run:
        """Queue a run on what a cohort query finds, from the newest version that those devices serve.

        Raises:
            InvalidError: settings that are none of `RunConfig`, or out of range, or too few devices.
            NotFoundError: no device of the cohort serves such a version.
            ConflictError: a run on the same bundle has not ended.
        """
        try:
            config = msgspec.convert(dict(settings), RunConfig)
        except msgspec.ValidationError as error:
            raise InvalidError(f"settings of a run: {error}") from error
        found = serving.find(connection, model, self._cohort(connection, cohort), version=version)
        return self.launch(
            connection,
            model=model,
            version=found.version,
            bundle_sha256=found.bundle_sha256,
            cohort=found.devices,
            config=config,
            now=now,
        )

    def launch(
        self,
        connection: Connection,
        *,
        model: str,
        version: int,
        bundle_sha256: str,
        cohort: Sequence[str],
        config: RunConfig,
        now: float,
        alert: str | None = None,
    ) -> Run:
        """Queue a run on devices that serve one bundle, in the caller's transaction.

        Args:
            connection: the caller's transaction.
            model, version: where the run starts.
            bundle_sha256: the very bundle that the devices serve.
            cohort: names of the devices.
            config: settings.
            now: seconds since the epoch.
            alert: what this run answers.

        Raises:
            InvalidError: settings out of range, or too few devices.
            ConflictError: a run on the same bundle has not ended.
        """
        check(config)
        devices = sorted(set(cohort))
        if len(devices) < self._smallest:
            raise InvalidError(
                f"a cohort of {len(devices)} devices, but results of fewer than {self._smallest} are not made"
            )
        take_turns(connection, "rounds")
        other = runs.still_open(connection, bundle_sha256)
        if other is not None:
            raise ConflictError(f"run {other.id} on {model}:{version} has not ended; wait for it or cancel it")
        name = uuid4().hex[:12]
        run = Run(
            id=name,
            model=model,
            version=version,
            bundle_sha256=bundle_sha256,
            cohort=devices,
            config=config,
            alert=alert,
            job=f"rounds-{name}",
            state="queued",
            result_version=None,
            error="",
            created_at=now,
            finished_at=None,
        )
        runs.create(connection, run)
        self._jobs.queue(connection, id=run.job or run.id, kind="rounds", spec={"run": run.id}, now=now)
        return run

    def cancel(self, connection: Connection, run: str, now: float) -> Run:
        """Stop a run; what its devices have not answered expires.

        Raises:
            NotFoundError: no such run.
            ConflictError: it has ended.
        """
        found = runs.get(connection, run)
        if found.state not in runs.OPEN:
            raise ConflictError(f"run {run} has ended ({found.state})")
        runs.finish(connection, run, "cancelled", now=now)
        if found.job is not None:
            self._jobs.request_cancel(connection, found.job, now=now)
        return runs.get(connection, run)

    def status(self, connection: Connection, run: str) -> RunStatus:
        """A run with its rounds.

        Raises:
            NotFoundError: no such run.
        """
        return RunStatus(runs.get(connection, run), runs.committed(connection, run))

    def every(self, connection: Connection) -> list[Run]:
        """The newest runs first."""
        return runs.every(connection)

    def tick(self, now: float) -> None:
        """Expire instructions, and end runs whose job has ended without saying so (it was killed too often)."""
        with self._storage.engine.begin() as connection:
            delivery.expire(connection, now)
            query = select(runs_table.c.id, jobs.c.id.label("job"), jobs.c.state, jobs.c.error)
            query = query.join_from(runs_table, jobs, jobs.c.id == runs_table.c.job)
            ended = query.where(runs_table.c.state.in_(runs.OPEN), jobs.c.state.in_(("failed", "cancelled")))
            for row in connection.execute(ended).all():
                error = row.error or f"its job {row.job} {row.state}"
                runs.finish(connection, row.id, row.state, now=now, error=error)

    def due(self, connection: Connection, now: float) -> list[tuple[str, Instruction]]:
        """Instructions to publish, by device."""
        return delivery.due(connection, now)

    def sent(self, connection: Connection, ids: Collection[str], now: float) -> None:
        """Note that these were published."""
        delivery.sent(connection, ids, now)

    def unanswered(self, connection: Connection, device: str, now: float) -> list[Instruction]:
        """What to publish again when a device says hello."""
        return delivery.unanswered(connection, device, now)

    def may_fetch(self, connection: Connection, device: str, sha256: str, now: float) -> bool:
        """Whether the device may pull this blob for a round."""
        return delivery.may_fetch(connection, device, sha256, now)

    def on_upload_block(self, connection: Connection, device: str, body: UploadBlock, now: float) -> None:
        """Take one block of an update; errors as in `intake.on_upload_block`."""
        intake.on_upload_block(connection, self._storage.blobs, device, body, now)

    def on_round_reply(self, connection: Connection, device: str, body: RoundReply, now: float) -> None:
        """Take a reply; errors as in `intake.on_round_reply`."""
        intake.on_round_reply(connection, device, body, now)
