"""What the API offers of the registry: blobs, snapshots, models, versions, variants, gates and bundles."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from contract.messages import BlobRef
from contract.training import TrainingSpec
from coordinator.records import Bundle, Gate, Model, Override, Snapshot, Variant, Version
from coordinator.registry.gates import Gates
from coordinator.transport import Transport, decode


class RegistryCalls(Transport):
    """Part of `coordinator.client.Client`."""

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
