"""The coordinator's HTTP API, typed: what the command line, jobs and other programs of ours talk through.

`transport` says how a call is made and when it is tried again; here is what can be called.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from coordinator import config, records
from coordinator.errors import InvalidError
from coordinator.fleet_calls import FleetCalls
from coordinator.records import (
    FINISHED,
    Alert,
    Bundle,
    Device,
    DeviceCommand,
    DeviceToken,
    Gate,
    Job,
    Measurement,
    Model,
    Override,
    Rollout,
    RolloutDevice,
    Round,
    Run,
    SigningRequest,
    Snapshot,
    Status,
    Variant,
    Version,
)
from coordinator.registry.gates import Gates
from coordinator.registry.gates import from_fields as gates_from_fields
from coordinator.registry.gates import from_toml as gates_from_toml
from coordinator.registry_calls import RegistryCalls
from coordinator.transport import RETRY_S, ClientError, UnreachableError

__all__ = [
    "FINISHED",
    "Alert",
    "Bundle",
    "Client",
    "ClientError",
    "Device",
    "DeviceCommand",
    "DeviceToken",
    "Gate",
    "Gates",
    "InvalidError",
    "Job",
    "JobContext",
    "JobFailedError",
    "Measurement",
    "Model",
    "Override",
    "Rollout",
    "RolloutDevice",
    "Round",
    "Run",
    "SigningRequest",
    "Snapshot",
    "Status",
    "UnreachableError",
    "Variant",
    "Version",
    "gates_from_fields",
    "gates_from_toml",
    "records",
]


class JobFailedError(ClientError):
    """A job that was waited for failed or was cancelled; `job` is its last record."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"job {job.id} ({job.kind}) {job.state}: {job.error or 'no reason given'}")
        self.job = job


@dataclass(frozen=True)
class JobContext:
    """What a job gets.

    A job kind is an entry point in the group `fieldfare.jobs`, a callable `run(context) -> dict` whose answer is the
    job's result (JSON). It may be killed at any moment and is then run again with `resumed` set.

    Attributes:
        spec: as given when the job was made.
        folder: its own, kept between attempts.
        state: the coordinator's state folder.
        client: with the operator's token.
        report: call it with progress in [0, 1] and a short message.
    """

    id: str
    spec: dict[str, Any]
    folder: Path
    state: Path
    client: "Client"
    resumed: bool
    report: Callable[[float, str], None]


class Client(RegistryCalls, FleetCalls):
    """Every route of the API as a method; close it, or use `with`."""

    @classmethod
    def from_state(cls, state: Path, *, retry_s: float = RETRY_S) -> Self:
        """Connect to the coordinator of a state folder on this machine, as its operator.

        Args:
            state: the coordinator's state folder.
            retry_s: as in the constructor.

        Raises:
            SetupError: no coordinator in that folder.
            ClientError: no token that can be read.
        """
        settings = config.load(state)
        path = state / "tokens" / "operator"
        try:
            token = path.read_text().strip()
        except OSError as error:
            raise ClientError(f"{path}: cannot read the token: {error.strerror}") from error
        return cls(f"https://{settings.host}:{settings.api_port}", state / "pki" / "ca.crt", token, retry_s=retry_s)

    # the coordinator itself

    def healthy(self) -> bool:
        """Whether it answers now; never raises for one that is down."""
        try:
            return self.send("GET", "/healthz", patience_s=0.0).status_code == 200
        except ClientError:
            return False

    def status(self) -> Status:
        """The coordinator at a glance."""
        return self.get("/v1/status", Status)

    def metrics(self) -> str:
        """Prometheus text."""
        return self.send("GET", "/metrics").text

    # jobs

    def create_job(self, kind: str, spec: Mapping[str, Any], *, id: str | None = None) -> Job:  # noqa: A002 its name
        """Queue a job. With an `id` of yours, asking again gives the same job."""
        body = {"id": id or uuid4().hex[:12], "kind": kind, "spec": spec}
        return self.post("/v1/jobs", Job, body, repeat=True)

    def jobs(self) -> list[Job]:
        """All jobs, newest first."""
        return self.get("/v1/jobs", list[Job])

    def job(self, id: str) -> Job:  # noqa: A002 its name in the API
        """One job with its progress."""
        return self.get(f"/v1/jobs/{id}", Job)

    def job_log(self, id: str) -> str:  # noqa: A002 its name in the API
        """The end of what a job printed (at most 1 MiB)."""
        return self.send("GET", f"/v1/jobs/{id}/log").text

    def cancel_job(self, id: str) -> Job:  # noqa: A002 its name in the API
        """Stop a job."""
        return self.post(f"/v1/jobs/{id}/cancel", Job, repeat=True)

    def wait_job(
        self,
        id: str,  # noqa: A002 its name in the API
        *,
        timeout_s: float,
        on_progress: Callable[[Job], None] | None = None,
        poll_s: float = 0.2,
    ) -> Job:
        """Wait until a job has succeeded.

        Args:
            id: of the job.
            timeout_s: how long at most.
            on_progress: called with the record whenever it has changed.
            poll_s: seconds between two looks.

        Raises:
            JobFailedError: it failed or was cancelled.
            UnreachableError: it had not ended in time.
        """
        deadline, seen = time.monotonic() + timeout_s, None
        while True:
            job = self.job(id)
            if job != seen and on_progress is not None:
                on_progress(job)
            seen = job
            if job.state == "succeeded":
                return job
            if job.state in FINISHED:
                raise JobFailedError(job)
            if time.monotonic() > deadline:
                raise UnreachableError(f"job {id} ({job.kind}) is still {job.state} after {timeout_s:g} s")
            time.sleep(poll_s)

    # rollouts

    def start_rollout(
        self,
        bundle_sha256: str,
        *,
        cohort: str = "all",
        waves: Sequence[float] | None = None,
        max_failures: int = 0,
        device_timeout_s: float = 300.0,
        health_timeout_s: float = 0.0,
    ) -> Rollout:
        """Start a rollout of a bundle; it waits until the bundle is signed.

        Args:
            bundle_sha256: of the bundle.
            cohort: as in `devices`.
            waves: sizes (1, 5) or fractions (0.1); None is one canary, then the rest.
            max_failures: refusals and timeouts that are borne before it fails.
            device_timeout_s: how long a device may take.
            health_timeout_s: how long its probation may take before the next wave; 0 does not wait for it.
        """
        body = {
            "bundle_sha256": bundle_sha256,
            "cohort": cohort,
            "waves": waves,
            "max_failures": max_failures,
            "device_timeout_s": device_timeout_s,
            "health_timeout_s": health_timeout_s,
        }
        return self.post("/v1/rollouts", Rollout, body)

    def rollouts(self) -> list[Rollout]:
        """All rollouts, newest first."""
        return self.get("/v1/rollouts", list[Rollout])

    def rollout(self, id: str) -> Rollout:  # noqa: A002 its name in the API
        """One rollout with its devices and their reasons."""
        return self.get(f"/v1/rollouts/{id}", Rollout)

    def pause_rollout(self, id: str) -> Rollout:  # noqa: A002 its name in the API
        """Offer it to no further device."""
        return self.post(f"/v1/rollouts/{id}/pause", Rollout, repeat=True)

    def resume_rollout(self, id: str) -> Rollout:  # noqa: A002 its name in the API
        """Go on with a paused rollout."""
        return self.post(f"/v1/rollouts/{id}/resume", Rollout, repeat=True)

    def abort_rollout(self, id: str) -> Rollout:  # noqa: A002 its name in the API
        """End it; devices keep what they have."""
        return self.post(f"/v1/rollouts/{id}/abort", Rollout, repeat=True)

    # rounds

    def launch_run(
        self,
        model: str,
        *,
        cohort: str = "all",
        version: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Run:
        """Start federated rounds from `version`, or the newest that the cohort serves; `settings` as in `RunConfig`."""
        body = {"model": model, "cohort": cohort, "version": version, "config": settings or {}}
        return self.post("/v1/rounds", Run, body)

    def runs(self) -> list[Run]:
        """All runs, newest first."""
        return self.get("/v1/rounds", list[Run])

    def run(self, id: str) -> Run:  # noqa: A002 its name in the API
        """One run with its rounds."""
        return self.get(f"/v1/rounds/{id}", Run)

    def cancel_run(self, id: str) -> Run:  # noqa: A002 its name in the API
        """Stop a run; rounds that are committed stay."""
        return self.post(f"/v1/rounds/{id}/cancel", Run, repeat=True)

    # drift

    def drift(
        self, model: str, *, version: int | None = None, since: float | None = None, cohort: str = "all"
    ) -> dict[str, Any]:
        """The drift report of a model: pooled by cohort against the reference, and devices against their own past."""
        return self.get("/v1/drift", dict[str, Any], model=model, version=version, since=since, cohort=cohort)

    def alerts(self) -> list[Alert]:
        """All alerts, newest first."""
        return self.get("/v1/drift/alerts", list[Alert])

    # signing (with the signer's token)

    def signing_requests(self) -> list[SigningRequest]:
        """Bundles that wait for a signature, oldest first."""
        return self.get("/v1/signing/requests", list[SigningRequest])

    def signing_bundle(self, sha256: str) -> bytes:
        """A bundle to be signed, whole."""
        return self.send("GET", f"/v1/signing/bundles/{sha256}").content

    def submit_signature(self, id: str, metadata: str) -> SigningRequest:  # noqa: A002 its name in the API
        """Hand in the signed `bundles` metadata, the very text."""
        return self.post(f"/v1/signing/requests/{id}/metadata", SigningRequest, {"metadata": metadata}, repeat=True)

    def refuse_signature(self, id: str, reason: str) -> SigningRequest:  # noqa: A002 its name in the API
        """Say that a bundle will not be signed, and why."""
        return self.post(f"/v1/signing/requests/{id}/refusal", SigningRequest, {"reason": reason}, repeat=True)

    def signing_metadata(self, role: str) -> bytes | None:
        """The newest published metadata of root, targets or bundles; None until somebody has begun the repository."""
        try:
            return self.send("GET", f"/v1/signing/metadata/{role}").content
        except ClientError as error:
            if error.status == 404:
                return None
            raise

    def publish_metadata(self, files: Mapping[str, str]) -> dict[str, Any]:
        """Hand in root, targets and bundles metadata, all that belongs together: file name to the very text."""
        return self.post("/v1/signing/repository", dict[str, Any], {"metadata": files}, repeat=True)
