"""The coordinator's HTTP API, typed: what the command line, jobs and other programs of ours talk through.

`transport` says how a call is made and when it is tried again; here is what can be called.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import msgspec

from contract.messages import BlobRef
from contract.training import TrainingSpec
from coordinator import config, records
from coordinator.errors import InvalidError
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
from coordinator.transport import RETRY_S, ClientError, Transport, UnreachableError, decode

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


class Client(Transport):
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

    # registry

    def put_blob(self, data: bytes) -> BlobRef:
        """Store bytes by content; safe to repeat."""
        headers = {"Content-Type": "application/octet-stream"}
        return decode(self.send("POST", "/v1/blobs", content=data, headers=headers, repeat=True), BlobRef)

    def get_blob(self, sha256: str) -> bytes:
        """Bytes of a blob."""
        return self.send("GET", f"/v1/blobs/{sha256}").content

    def create_snapshot(self, *, task: str, manifest: Mapping[str, Any]) -> Snapshot:
        """Register a data snapshot; the blobs named under `files` must be there. Safe to repeat."""
        return self.post("/v1/snapshots", Snapshot, {"task": task, "manifest": manifest}, repeat=True)

    def snapshots(self) -> list[Snapshot]:
        """All snapshots, newest first."""
        return self.get("/v1/snapshots", list[Snapshot])

    def models(self) -> list[Model]:
        """All models with their versions."""
        return self.get("/v1/models", list[Model])

    def create_version(
        self,
        model: str,
        *,
        task: str,
        metrics: Mapping[str, Any],
        weights_sha256: str = "",
        artifact_sha256: str | None = None,
        snapshot_sha256: str | None = None,
        parents: Sequence[int] = (),
        run: str | None = None,
        job: str | None = None,
        reference_sha256: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> Version:
        """Register a version; its number comes from the registry. Fields as in `Version`.

        Safe to repeat: a job or a run makes one version of a model, and gets the one it made when it asks again;
        without either, the same weights, snapshot and parents are the same version, or the same artifact.
        """
        body = {
            "task": task,
            "weights_sha256": weights_sha256,
            "artifact_sha256": artifact_sha256,
            "metrics": metrics,
            "snapshot_sha256": snapshot_sha256,
            "parents": parents,
            "run": run,
            "job": job,
            "reference_sha256": reference_sha256,
            "details": details or {},
        }
        return self.post(f"/v1/models/{model}/versions", Version, body, repeat=True)

    def get_version(self, model: str, version: int) -> Version:
        """One version with its variants and bundles."""
        return self.get(f"/v1/models/{model}/versions/{version}", Version)

    def create_variant(
        self, model: str, version: int, *, name: str, tflite_sha256: str, report: Mapping[str, Any], gate: Gate
    ) -> Variant:
        """Register a variant. Until a bundle holds it, asking again replaces it (a compression that was killed)."""
        body = {"name": name, "tflite_sha256": tflite_sha256, "report": report, "gate": msgspec.to_builtins(gate)}
        return self.post(f"/v1/models/{model}/versions/{version}/variants", Variant, body, repeat=True)

    def gates(self, model: str) -> Gates | None:
        """What a model's variants must hold where a job does not say; None where nobody set it."""
        return self.get(f"/v1/models/{model}/gates", Gates | None)  # type: ignore[arg-type]  # a union is no class

    def set_gates(self, model: str, gates: Gates) -> Gates:
        """Keep what a model's variants must hold from now on."""
        return self.post(f"/v1/models/{model}/gates", Gates, msgspec.to_builtins(gates), repeat=True)

    def override(
        self, model: str, version: int, variant: str, *, statement: str, keyid: str, signature: str
    ) -> Override:
        """Hand in a signed override of a variant's gate: `coordinator.registry.overrides.sign` makes one."""
        body = {"statement": statement, "keyid": keyid, "signature": signature}
        return self.post(
            f"/v1/models/{model}/versions/{version}/variants/{variant}/overrides", Override, body, repeat=True
        )

    def create_bundle(
        self,
        model: str,
        version: int,
        variant: str,
        *,
        parts: Mapping[str, str],
        labels: Sequence[str],
        temperature: float,
        golden_tolerance: float,
        training: TrainingSpec | None,
        hardware_classes: Sequence[str] = (),
        min_agent_version: str = "0.1.0",
        min_runtime_version: str = "",
    ) -> Bundle:
        """Build a bundle from blobs and ask the signer for it. The same parts give the same bundle: safe to repeat.

        Args:
            model: its name.
            version: of the model.
            variant: must have passed its gate; `parts["inference"]` is its artifact.
            parts: role (`contract.bundle.ROLES`) to the digest of a blob.
            labels, temperature, golden_tolerance, training, hardware_classes: as in the Manifest.
            min_agent_version, min_runtime_version: as in the Manifest.
        """
        body = {
            "parts": parts,
            "labels": labels,
            "temperature": temperature,
            "golden_tolerance": golden_tolerance,
            "training": msgspec.to_builtins(training),
            "hardware_classes": hardware_classes,
            "min_agent_version": min_agent_version,
            "min_runtime_version": min_runtime_version,
        }
        path = f"/v1/models/{model}/versions/{version}/variants/{variant}/bundles"
        return self.post(path, Bundle, body, repeat=True)

    def bundles(self) -> list[Bundle]:
        """All bundles, newest first."""
        return self.get("/v1/bundles", list[Bundle])

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

    # fleet

    def add_device(
        self, name: str, tags: Mapping[str, str] | None = None, *, hardware_class: str = "", again: bool = False
    ) -> DeviceToken:
        """Expect a device, or one that is enrolled or revoked `again`.

        Its one-time token comes back, and replaces one that was not used.
        """
        body = {"name": name, "tags": tags or {}, "hardware_class": hardware_class, "again": again}
        return self.post("/v1/devices", DeviceToken, body)

    def devices(self, cohort: str = "all") -> list[Device]:
        """Devices of a cohort (`all`, `name=a,b`, `tag:site=north`, `class=x86-64`), by name."""
        return self.get("/v1/devices", list[Device], cohort=cohort)

    def device(self, name: str) -> Device:
        """One device."""
        return self.get(f"/v1/devices/{name}", Device)

    def revoke_device(self, name: str, reason: str = "") -> Device:
        """End what a device may do; the broker cuts it off within seconds."""
        return self.post(f"/v1/devices/{name}/revoke", Device, {"reason": reason})

    def set_log_level(self, name: str, level: str, seconds: float) -> DeviceCommand:
        """Ask a device to log from this level on for so long."""
        return self.post(f"/v1/devices/{name}/log-level", DeviceCommand, {"level": level, "seconds": seconds})

    def diagnose(self, name: str) -> DeviceCommand:
        """Ask a device for a diagnostics archive; `wait_command`, then `diagnostics`."""
        return self.post(f"/v1/devices/{name}/diagnostics", DeviceCommand)

    def bench(self, name: str, bundle_sha256: str) -> DeviceCommand:
        """Ask a device to measure a signed bundle; `wait_command`, then `measurements`."""
        return self.post(f"/v1/devices/{name}/bench", DeviceCommand, {"bundle_sha256": bundle_sha256})

    def measurements(self, artifact_sha256: str) -> list[Measurement]:
        """What devices measured of an artifact, newest first."""
        return self.get("/v1/measurements", list[Measurement], artifact=artifact_sha256)

    def commands(self, name: str) -> list[DeviceCommand]:
        """What was asked of a device, newest first."""
        return self.get(f"/v1/devices/{name}/commands", list[DeviceCommand])

    def wait_command(self, command: DeviceCommand, *, timeout_s: float, poll_s: float = 0.2) -> DeviceCommand:
        """Wait for a device's answer.

        Raises:
            UnreachableError: it did not come in time; it may come later.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.get(f"/v1/devices/{command.device}/commands/{command.id}", DeviceCommand)
            if found.answered_at is not None:
                return found
            if time.monotonic() > deadline:
                raise UnreachableError(
                    f"{command.device} has not answered in {timeout_s:g} s; it will once it is connected: "
                    f"fieldfare devices commands {command.device}"
                )
            time.sleep(poll_s)

    def diagnostics(self, command: DeviceCommand) -> bytes:
        """The archive that came in answer: a zip."""
        return self.send("GET", f"/v1/devices/{command.device}/commands/{command.id}/archive").content

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
