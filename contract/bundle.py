"""A bundle: what a device downloads, as one deterministic zip with a manifest.

The bundle is a TUF target. The agent parses it only after its digest was verified; every size is bounded all the same.

Files by role: `inference` (.tflite), `training` (.tflite, optional), `transform` (JSON), `profile` (JSON),
`golden` (safetensors: raw inputs and the outputs that the runtime must give), `weights` (safetensors, with
`training`: where rounds start from).
"""

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Mapping

import msgspec
import numpy as np

from contract import codec, limits, profile, tensors, transform
from contract.errors import BundleError, ContractError, TooLargeError
from contract.training import TrainingSpec

MANIFEST = "manifest.json"
ROLES = ("inference", "training", "transform", "profile", "golden", "weights")
REQUIRED = frozenset({"inference", "transform", "profile", "golden"})
_EPOCH = (1980, 1, 1, 0, 0, 0)
NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")


def check_model(name: str) -> str:
    """Return `name` if it may name a model; it is a folder's name on a device too.

    Raises:
        BundleError: not 1 to 63 lower-case letters, digits and inner . _ -, or two dots in a row.
    """
    if not NAME.fullmatch(name) or ".." in name:
        raise BundleError(f"model name {name[:80]!r}: use 1 to 63 lower-case letters, digits and inner . _ -")
    return name


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a bundle: SHA-256 in lower-case hex, and bytes."""

    sha256: str
    size: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle is and needs.

    Attributes:
        labels: names of the classes, in the order of the model's outputs.
        temperature: logits are divided by it before the softmax (Guo et al. 2017, arXiv:1706.04599).
        golden_tolerance: largest absolute difference of an output that the self-test allows.
        training: how to call the training signature; None where the bundle cannot train.
        hardware_classes: that may run it; empty means any.
        min_runtime_version: names and versions, one of which the device's runtime must have or be newer than, for
            example `ai-edge-litert 2.3.0, tflite-runtime 2.14.0`; a version alone is of any runtime, empty means any.
        created_at: seconds since the epoch.
        files: by role.
    """

    model: str
    version: int
    variant: str
    labels: list[str]
    temperature: float
    golden_tolerance: float
    training: TrainingSpec | None
    hardware_classes: list[str]
    min_agent_version: str
    min_runtime_version: str = ""
    created_at: int
    files: dict[str, FileEntry] = {}
    revision: int = 1


class Bundle:
    """A verified bundle in memory: the manifest and the parts, decoded where small."""

    def __init__(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        """Decode the parts.

        Raises:
            BundleError: a part that cannot be decoded or does not agree with another.
        """
        self.manifest = manifest
        self.files = dict(files)
        try:
            self.transform = transform.Transform(transform.decode(files["transform"]))
            self.profile = codec.decode_json(files["profile"], profile.Reference, limit=limits.ARTIFACT_BYTES)
            profile.check_spec(self.profile.spec)
            profile.check_counts(self.profile.spec, self.profile.counts)
            self.golden = tensors.load(files["golden"])
        except ContractError as error:
            raise BundleError(f"{manifest.model}:{manifest.version}: {error}") from error
        self._check()

    def _check(self) -> None:
        named = tuple(feature.name for feature in self.profile.spec.features)
        if named != self.transform.feature_names:
            raise BundleError(f"the profile counts {named}, the transform gives {self.transform.feature_names}")
        if self.profile.spec.classes != len(self.manifest.labels):
            raise BundleError(f"{self.profile.spec.classes} classes but {len(self.manifest.labels)} labels")
        lengths = {array.shape[:1] for array in self.golden.values()}
        if set(self.golden) != {"x", "logits"} or len(lengths) != 1 or lengths == {()}:
            raise BundleError("golden vectors need `x` and `logits` of one length")
        if lengths == {(0,)}:
            raise BundleError("golden vectors are empty")
        if (self.manifest.training is None) != ("training" not in self.files):
            raise BundleError("the training signature and its description must come together")
        if ("training" in self.files) != ("weights" in self.files):
            raise BundleError("a training signature needs the weights that rounds start from")


def pack(manifest: Manifest, files: Mapping[str, bytes]) -> bytes:
    """Make a bundle; the same parts give the same bytes.

    Args:
        manifest: its `files` are filled in here.
        files: role to content.

    Raises:
        BundleError: a role that is unknown or missing, or parts that do not agree.
    """
    _check_roles(files)
    entries = {role: _entry(files[role]) for role in ROLES if role in files}
    whole = msgspec.structs.replace(manifest, files=entries)
    Bundle(whole, files)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in [(MANIFEST, codec.encode_json(whole)), *((role, files[role]) for role in entries)]:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o600 << 16
            archive.writestr(info, content, zipfile.ZIP_STORED)  # so that patches see inside; transport compresses
    return buffer.getvalue()


def _entry(content: bytes) -> FileEntry:
    return FileEntry(hashlib.sha256(content).hexdigest(), len(content))


def unpack(data: bytes, *, limit: int = limits.ARTIFACT_BYTES) -> Bundle:
    """Read a bundle whose digest the caller has verified.

    Raises:
        BundleError: not a bundle, a file that the manifest does not describe, too many files, or parts that disagree.
        TooLargeError: the parts together unpack to more than `limit` bytes.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if len(infos) > limits.BUNDLE_FILES:
                raise BundleError(f"{len(infos)} files in a bundle, at most {limits.BUNDLE_FILES} may be")
            total = sum(info.file_size for info in infos)
            if total > limit:
                raise TooLargeError("an unpacked bundle", size=total, limit=limit)
            content = {info.filename: _read(archive, info) for info in infos}
    # zipfile says NotImplementedError of versions and methods it cannot read, RuntimeError of encrypted entries
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, EOFError, RuntimeError) as error:
        raise BundleError(f"not a bundle: {error}") from error
    manifest = _manifest(content.pop(MANIFEST, b""))
    if len(content) + 1 != len(infos) or set(content) != set(manifest.files):
        raise BundleError(f"files {sorted(content)} are not those of the manifest {sorted(manifest.files)}")
    for role, entry in manifest.files.items():
        if _entry(content[role]) != entry:
            raise BundleError(f"{role}: the content does not have the digest that the manifest states")
    _check_roles(content)
    return Bundle(manifest, content)


def _check_roles(files: Mapping[str, bytes]) -> None:
    if not set(files) >= REQUIRED or not set(files) <= set(ROLES):
        raise BundleError(f"roles {sorted(files)}: need {sorted(REQUIRED)}, may have {ROLES}")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise BundleError(f"{info.filename[:80]!r} is compressed in a way that bundles do not use")
    with archive.open(info) as file:
        return file.read(info.file_size)


def _manifest(data: bytes) -> Manifest:
    try:
        manifest = codec.decode_json(data, Manifest, limit=limits.MANIFEST_BYTES)
    except ContractError as error:
        raise BundleError(f"no readable manifest: {error}") from error
    if manifest.revision != 1:
        raise BundleError(f"bundle revision {manifest.revision} is newer than this program understands (1)")
    if not manifest.temperature > 0 or not np.isfinite(manifest.temperature):
        raise BundleError(f"temperature {manifest.temperature} is not a positive number")
    return manifest


def target_path(model: str, version: int, variant: str, sha256: str) -> str:
    """Path of a bundle in the TUF repository: `bundles/digits/1/int8-0123456789ab.zip`."""
    return f"bundles/{model}/{version}/{variant}-{sha256[:12]}.zip"
