"""Data snapshots: what a model was trained on, by content, so that it can be had again to the bit.

One safetensors file for each part. Text columns are stored as codes into the manifest's lists. The snapshot's name is
the SHA-256 of its manifest, which holds the SHA-256 of every file.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from cloud.errors import DataError
from cloud.learning.task import PARTS, UNLABELLED, Data
from contract import codec, tensors
from contract.errors import ContractError

REVISION = 1


class SnapshotFile(msgspec.Struct, frozen=True, kw_only=True):
    """The samples of one part."""

    sha256: str
    size: int
    samples: int


class SnapshotManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot holds.

    Attributes:
        task: name of the task that gave the data, `options` what it was asked for.
        devices: names that the device codes stand for.
        files: part to its file.
    """

    task: str
    options: dict[str, Any]
    devices: list[str]
    files: dict[str, SnapshotFile]
    revision: int = REVISION

    def fields(self) -> dict[str, Any]:
        """As plain JSON values, the form in which the registry keeps it."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, lower-case hex."""
        return hashlib.sha256(codec.encode_json(self.fields())).hexdigest()


@dataclass(frozen=True)
class Snapshot:
    """A manifest and its files, by digest."""

    manifest: SnapshotManifest
    files: Mapping[str, bytes]


def take(task: str, options: Mapping[str, Any], data: Data) -> Snapshot:
    """Freeze data; the same data give the same bytes and so the same name.

    Args:
        task: name of the task.
        options: that `load_data` was called with, JSON values.
        data: columns x, y, device, part, as `Task.load_data` gives them.
    """
    devices, codes = np.unique(data["device"], return_inverse=True)
    files: dict[str, bytes] = {}
    entries = {}
    for part in (*PARTS, *([UNLABELLED] if (data["part"] == UNLABELLED).any() else [])):
        rows = data["part"] == part
        columns = {"x": data["x"][rows], "y": data["y"][rows].astype(np.int64), "device": codes[rows].astype(np.int64)}
        content = tensors.dump(columns)
        digest = hashlib.sha256(content).hexdigest()
        files[digest] = content
        entries[part] = SnapshotFile(sha256=digest, size=len(content), samples=int(rows.sum()))
    manifest = SnapshotManifest(task=task, options=dict(options), devices=[str(d) for d in devices], files=entries)
    return Snapshot(manifest, files)


def load(manifest: SnapshotManifest, read: Callable[[str], bytes]) -> Data:
    """Data of a snapshot, every file checked against the manifest before it is parsed.

    Args:
        manifest: of the snapshot.
        read: digest to bytes, for example `Client.get_blob`.

    Raises:
        DataError: a newer snapshot, a file with other bytes, or other columns than a snapshot has.
    """
    if manifest.revision != REVISION:
        raise DataError(f"snapshot revision {manifest.revision}: this program understands {REVISION}")
    columns: dict[str, list[np.ndarray]] = {"x": [], "y": [], "device": [], "part": []}
    names = np.array(manifest.devices)
    for part, file in manifest.files.items():
        arrays = _file(part, file, read(file.sha256))
        if arrays["device"].size and not 0 <= arrays["device"].min() <= arrays["device"].max() < len(names):
            raise DataError(f"snapshot file {file.sha256[:12]} ({part}): a device that the manifest does not name")
        columns["x"].append(arrays["x"])
        columns["y"].append(arrays["y"])
        columns["device"].append(names[arrays["device"]])
        columns["part"].append(np.full(file.samples, part))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _file(part: str, file: SnapshotFile, content: bytes) -> tensors.Arrays:
    where = f"snapshot file {file.sha256[:12]} ({part})"
    if hashlib.sha256(content).hexdigest() != file.sha256 or len(content) != file.size:
        raise DataError(f"{where}: the stored bytes are not those of the manifest")
    try:
        arrays = tensors.load(content)
    except ContractError as error:
        raise DataError(f"{where}: {error}") from error
    if set(arrays) != {"x", "y", "device"} or any(len(array) != file.samples for array in arrays.values()):
        raise DataError(f"{where}: expected columns x, y, device of {file.samples} samples")
    return arrays


def manifest_of(fields: Mapping[str, Any]) -> SnapshotManifest:
    """The manifest as the registry gives it back.

    Raises:
        DataError: fields that are no manifest.
    """
    try:
        return msgspec.convert(fields, SnapshotManifest)
    except msgspec.ValidationError as error:
        raise DataError(f"not a snapshot manifest: {error}") from error
