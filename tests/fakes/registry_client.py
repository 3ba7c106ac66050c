"""The registry behind the names of `coordinator.client.Client`, in this process: the real service, without HTTP."""

from pathlib import Path
from typing import Any

import msgspec

from contract.messages import BlobRef
from coordinator import records
from coordinator.client import JobContext
from coordinator.registry import bundling
from coordinator.registry.gates import Gates
from coordinator.registry.service import Registry
from coordinator.storage import Blobs, Storage, metadata, open_engine


class RegistryClient:
    """What the train, compress and evaluate jobs call. Close it."""

    def __init__(self, folder: Path) -> None:
        self._engine = open_engine(f"sqlite:///{folder / 'registry.sqlite'}")
        metadata.create_all(self._engine)
        self.blobs = Blobs(f"file://{folder / 'blobs'}")
        self.registry = Registry(Storage(self._engine, self.blobs), self._request, root=lambda _connection: self.root)
        self.requested: list[str] = []
        self.measured: list[records.Measurement] = []  # newest first
        self.root = b""  # the trusted metadata

    def _request(self, _connection: Any, *, sha256: str, **_others: Any) -> None:
        self.requested.append(sha256)

    def close(self) -> None:
        self._engine.dispose()

    def put_blob(self, data: bytes) -> BlobRef:
        return self.blobs.put(data)

    def get_blob(self, sha256: str) -> bytes:
        return self.blobs.get(sha256)

    def create_snapshot(self, **fields: Any) -> records.Snapshot:
        return self.registry.create_snapshot(**fields)

    def snapshots(self) -> list[records.Snapshot]:
        return self.registry.snapshots()

    def models(self) -> list[records.Model]:
        return self.registry.models()

    def create_version(self, model: str, **fields: Any) -> records.Version:
        return self.registry.create_version(model, **fields)

    def get_version(self, model: str, version: int) -> records.Version:
        return self.registry.version(model, version)

    def gates(self, model: str) -> Gates | None:
        return self.registry.gates(model)

    def measurements(self, artifact_sha256: str) -> list[records.Measurement]:
        return [each for each in self.measured if each.artifact_sha256 == artifact_sha256]

    def create_variant(self, model: str, version: int, **fields: Any) -> records.Variant:
        return self.registry.create_variant(model, version, **fields)

    def create_bundle(self, model: str, version: int, variant: str, **fields: Any) -> records.Bundle:
        return self.registry.create_bundle(model, version, variant, msgspec.convert(fields, bundling.Recipe))


def context(client: RegistryClient, folder: Path, job: str, spec: dict[str, Any], log: list[Any]) -> JobContext:
    """A job's context whose reports go to `log`."""
    return JobContext(
        id=job,
        spec=spec,
        folder=folder,
        state=folder,
        client=client,  # type: ignore[arg-type]  # the same methods, without HTTP
        resumed=False,
        report=lambda fraction, message: log.append((fraction, message)),
    )
