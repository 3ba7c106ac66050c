"""Rounds as the rest of the coordinator sees them: launch, watch and cancel runs; carry instructions and replies."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import uuid4

from sqlalchemy import Connection, update

from contract.messages import Instruction, RoundReply, UploadBlock
from coordinator.errors import ConflictError, InvalidError
from coordinator.rounds import delivery, intake, runs, settings
from coordinator.rounds.runs import RoundResult, Run
from coordinator.rounds.settings import RunConfig
from coordinator.rounds.tables import runs as runs_table
from coordinator.storage import Storage


class JobQueue(Protocol):
    """What rounds need of the job runner."""

    def submit(self, connection: Connection, kind: str, spec: dict[str, Any], now: float) -> str:
        """Queue a job in the caller's transaction and return its id."""

    def state(self, connection: Connection, job: str) -> str:
        """`queued`, `running`, `succeeded`, `failed` or `cancelled`."""

    def cancel(self, connection: Connection, job: str, now: float) -> None:
        """Ask for a job to be stopped."""


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
        find_bundle: Callable[[Connection, str, int | None], tuple[int, str]],
        smallest_cohort: int,
    ) -> None:
        """Compose the service.

        Args:
            storage: database and blobs.
            jobs: where runs are queued.
            find_bundle: (connection, model, version or None for the newest) to the version and digest of its newest
                signed bundle; raises NotFoundError.
            smallest_cohort: a run on fewer devices is refused.
        """
        self._storage = storage
        self._jobs = jobs
        self._find_bundle = find_bundle
        self._smallest = smallest_cohort

    def launch(
        self,
        connection: Connection,
        *,
        model: str,
        cohort: Sequence[str],
        config: RunConfig,
        now: float,
        version: int | None = None,
        bundle_sha256: str | None = None,
        alert: str | None = None,
    ) -> Run:
        """Queue a run on the devices of `cohort`, in the caller's transaction.

        Args:
            connection: the caller's transaction.
            model: name in the registry.
            cohort: names of devices.
            config: settings.
            now: seconds since the epoch.
            version: where the run starts; None means the newest version with a signed bundle.
            bundle_sha256: the very bundle that the devices run; None means the newest signed one of that version.
            alert: what this run answers.

        Raises:
            InvalidError: settings out of range, or too few devices.
            NotFoundError: no signed bundle of that version.
            ConflictError: a run on the same bundle has not ended.
        """
        settings.check(config)
        devices = sorted(set(cohort))
        if len(devices) < self._smallest:
            raise InvalidError(
                f"a cohort of {len(devices)} devices; results of fewer than {self._smallest} are not made"
            )
        if version is None or bundle_sha256 is None:
            version, bundle_sha256 = self._find_bundle(connection, model, version)
        other = runs.still_open(connection, bundle_sha256)
        if other is not None:
            raise ConflictError(f"run {other.id} on {model}:{version} has not ended; wait for it or cancel it")
        run = Run(
            id=uuid4().hex[:12],
            model=model,
            version=version,
            bundle_sha256=bundle_sha256,
            cohort=devices,
            config=config,
            alert=alert,
            job=None,
            state="queued",
            result_version=None,
            error="",
            created_at=now,
            finished_at=None,
        )
        runs.create(connection, run)
        job = self._jobs.submit(connection, "rounds", {"run": run.id}, now)
        connection.execute(update(runs_table).where(runs_table.c.id == run.id).values(job=job))
        return runs.get(connection, run.id)

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
            self._jobs.cancel(connection, found.job, now)
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
            for run in runs.every(connection):
                if run.state in runs.OPEN and run.job is not None:
                    state = self._jobs.state(connection, run.job)
                    if state in {"failed", "cancelled"}:
                        runs.finish(connection, run.id, state, now=now, error=f"its job {run.job} {state}")

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
