"""What the API answers with, the same types on both sides: services return them, the client decodes them.

Times are seconds since the epoch on the coordinator's clock.
"""

import re
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from contract.messages import BundleRef, Measured

_FIGURES = re.compile(r"(?<![\w.'-])-?\d[\d.,]*(?:e[+-]?\d+)?(?![\w'-])")


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a variant may ship, and why not; `notes` say what was not looked at."""

    passed: bool
    reasons: list[str] = []
    notes: list[str] = []


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A data snapshot: `sha256` is the digest of its manifest as canonical JSON."""

    sha256: str
    task: str
    manifest: dict[str, Any]
    created_at: float


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One compressed artifact of a model version with its measured report."""

    model: str
    version: int
    name: str
    tflite_sha256: str
    report: dict[str, Any]
    gate: Gate
    created_at: float


class OverrideTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a signed override says.

    Attributes:
        artifact_sha256: the `.tflite`; another artifact of the same name is not covered.
        reasons: of the gate, which are overridden; a reason that is none of them is not covered.
        reason: why, in the words of who signs.
        by: who signs, in their own words; the key is what counts.
        signed_at, expires_at: seconds since the epoch.
    """

    model: str
    version: int
    variant: str
    artifact_sha256: str
    reasons: list[str]
    reason: str
    by: str
    signed_at: float
    expires_at: float

    def unnamed(self, reasons: Iterable[str]) -> list[str]:
        """Those of a gate's reasons that this does not speak of, whatever their figures.

        A latency that is measured again is never quite the same; digits within names (`pi-4`, `'7'`) count.
        """
        named = {_FIGURES.sub("#", reason) for reason in self.reasons}
        return [reason for reason in reasons if _FIGURES.sub("#", reason) not in named]


class Override(OverrideTerms, frozen=True, kw_only=True):
    """A signed word that a variant may ship although it failed: see `coordinator.registry.overrides`.

    Attributes:
        keyid: of the key that signed.
        in_force: whether it holds now: not expired, and the root still lists its key.
    """

    keyid: str
    in_force: bool


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """What a device downloads; it rolls out once it is signed.

    Attributes:
        sha256, size: of the zip, which is also a blob.
        target: path in the TUF repository.
        signed_at: None until the signer has signed it.
    """

    sha256: str
    model: str
    version: int
    variant: str
    target: str
    size: int
    created_at: float
    signed_at: float | None = None

    @property
    def ref(self) -> BundleRef:
        """The name by which devices are told of it."""
        return BundleRef(
            model=self.model, version=self.version, variant=self.variant, target=self.target, sha256=self.sha256
        )


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable model version.

    Attributes:
        weights_sha256: blob of safetensors, in the model's order; empty for an artifact that was brought in.
        artifact_sha256: blob of a `.tflite` that was brought in, in place of weights.
        snapshot_sha256: of the data it was trained on; None for a federated version.
        parents: versions of the same model that it was made from.
        run, job: that made it.
        reference_sha256: blob of a `profile.Reference` as JSON that its bundles must use (federated versions).
        details: what its maker wants to keep, for example the digest of the transform.
    """

    model: str
    version: int
    created_at: float
    task: str
    weights_sha256: str
    artifact_sha256: str | None = None
    metrics: dict[str, Any] = {}
    snapshot_sha256: str | None = None
    parents: list[int] = []
    run: str | None = None
    job: str | None = None
    reference_sha256: str | None = None
    details: dict[str, Any] = {}
    variants: list[Variant] = []
    bundles: list[Bundle] = []
    overrides: list[Override] = []


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model and the numbers of its versions, oldest first."""

    name: str
    created_at: float
    versions: list[int]


JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINISHED = frozenset({"succeeded", "failed", "cancelled"})


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of heavy work in a process of its own. `progress` is in [0, 1]; `attempt` counts starts."""

    id: str
    kind: str
    spec: dict[str, Any]
    state: JobState
    attempt: int
    progress: float
    message: str
    result: dict[str, Any] | None
    error: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None


class DeviceToken(msgspec.Struct, frozen=True, kw_only=True):
    """A one-time enrolment token; only its hash is kept, so it is shown once."""

    name: str
    token: str
    expires_at: float


class DeviceAlert(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a device said its owner should know; `at` is on the device's clock."""

    kind: str
    text: str
    model: str
    at: float
    received_at: float


class DeviceCommand(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator asked of a device.

    Attributes:
        kind: `log-level`, `diagnostics` or `bench`.
        level, seconds: of `log-level`.
        bundle: of `bench`.
        sent_at: the broker has it; None before.
        answered_at: the device has done it, or said in `error` why not; None before.
        sha256, size: of the archive that came in answer, a blob.
    """

    id: str
    device: str
    kind: str
    level: str
    seconds: float
    created_at: float
    expires_at: float
    sent_at: float | None
    answered_at: float | None
    error: str
    sha256: str | None
    size: int
    bundle: BundleRef | None = None


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What a device measured of an artifact.

    Attributes:
        id: of the command that asked for it.
        hardware_class: of the device when it answered.
        measured_at: coordinator clock, seconds since the epoch.
    """

    id: str
    device: str
    hardware_class: str
    bundle_sha256: str
    artifact_sha256: str
    measured: Measured
    measured_at: float


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """An enrolled, expected or revoked agent.

    Attributes:
        hello: its last message of that kind.
        desired: what it should serve.
        alerts: the newest first; only where one device is asked for.
        certificate_expires_at: of its newest certificate; it renews it before.
        revoked_at: it may do nothing since then; None for most.
    """

    name: str
    hardware_class: str | None = None
    tags: dict[str, str] = {}
    enrolled_at: float | None = None
    connected: bool = False
    last_seen: float | None = None
    hello: dict[str, Any] | None = None
    desired: dict[str, Any] | None = None
    alerts: list[DeviceAlert] = []
    certificate_expires_at: float | None = None
    revoked_at: float | None = None
    revoked_reason: str = ""


class RolloutDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One device in a rollout: `pending`, `offered`, `activated`, `refused` or `timed-out`, and why."""

    device: str
    wave: int
    state: str
    reason: str = ""
    updated_at: float | None = None


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """Moving a cohort to a bundle in waves.

    Attributes:
        state: `awaiting signature`, `rolling`, `done`, `paused`, `aborted` or `failed`.
        waves: sizes or fractions; `wave` is the index of the one that is going.
        devices: filled when one rollout is asked for.
    """

    id: str
    model: str
    version: int
    variant: str
    bundle_sha256: str
    cohort: str
    waves: list[float]
    wave: int
    state: str
    error: str | None = None
    created_at: float = 0.0
    devices: list[RolloutDevice] = []


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One committed round of a run."""

    round: int
    kind: str
    metrics: dict[str, Any] = {}
    replies: int = 0
    failures: int = 0
    finished_at: float | None = None


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A durable sequence of rounds.

    Attributes:
        base_version: where it started from; `version` is what it made, once it did.
        job: that drives it.
        rounds: filled when one run is asked for.
    """

    id: str
    model: str
    base_version: int
    cohort: str
    config: dict[str, Any]
    state: str
    job: str | None = None
    version: int | None = None
    error: str | None = None
    created_at: float = 0.0
    finished_at: float | None = None
    rounds: list[Round] = []


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """A cohort drifted: which feature most, its statistic and p-value, and the run that answers it, if any."""

    id: str
    created_at: float
    model: str
    version: int
    bundle_sha256: str
    cohort: list[str]
    feature: str
    statistic: float
    p_value: float
    details: dict[str, Any] = {}
    state: str = "open"
    run: str | None = None


class SigningRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that waits for the signer: `pending`, `signed` or `refused` with the reason."""

    id: str
    bundle_sha256: str
    target: str
    size: int
    custom: dict[str, Any]
    state: str
    reason: str | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The coordinator at a glance.

    Attributes:
        broker: kind, host, port, and whether the gateway is connected.
        devices: total, enrolled, connected.
        jobs, rollouts, runs: counts by state.
        signing: whether the repository is published, requests that wait, and when root, targets and bundles expire.
        dropped: messages that the gateway dropped, by reason.
    """

    version: str
    started_at: float
    broker: dict[str, Any]
    devices: dict[str, int]
    models: int
    jobs: dict[str, int]
    rollouts: dict[str, int]
    runs: dict[str, int]
    signing: dict[str, Any]
    dropped: dict[str, int]
