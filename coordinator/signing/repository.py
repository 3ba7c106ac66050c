"""The files of our TUF repository: made and checked, bytes in and bytes out (The Update Framework, spec 1.0).

    root       names the keys of all roles                     signer, offline in production
    targets    delegates `bundles/*/*/*` to `bundles`           signer
    bundles    every bundle with size, digest and needs        signer, grows with each bundle
    snapshot   versions of targets and bundles                 coordinator (online)
    timestamp  version of snapshot, short-lived                coordinator (online)

A stolen online key can hold devices back on what they have until it expires, never give them anything new.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from contract import codec, limits
from coordinator.errors import InvalidError

BUNDLES = "bundles"
PATHS = ["bundles/*/*/*"]  # contract.bundle.target_path: model, version, file
OFFLINE_ROLES = ("root", "targets", BUNDLES)
ONLINE_ROLES = ("snapshot", "timestamp")
OFFLINE_DAYS = 365
SNAPSHOT_LIFE = timedelta(days=7)
TIMESTAMP_LIFE = timedelta(days=1)

S = TypeVar("S", Root, Targets)


class Target(NamedTuple):
    """A bundle as it must stand in the metadata."""

    size: int
    sha256: str


def moment(now: float) -> datetime:
    """TUF's times: UTC, whole seconds."""
    return datetime.fromtimestamp(int(now), UTC)


def initial(signers: Mapping[str, CryptoSigner], online: Mapping[str, Key], now: float) -> dict[str, bytes]:
    """The first root, targets and (empty) bundles.

    Args:
        signers: by offline role.
        online: public keys of `snapshot` and `timestamp`.
        now: seconds since the epoch.

    Returns: role to metadata.
    """
    expires = moment(now) + timedelta(days=OFFLINE_DAYS)
    root = Root(version=1, expires=expires, consistent_snapshot=True)
    for role in ("root", "targets"):
        root.add_key(signers[role].public_key, role)
    for role in ONLINE_ROLES:
        root.add_key(online[role], role)
    key = signers[BUNDLES].public_key
    delegated = DelegatedRole(BUNDLES, [key.keyid], 1, terminating=True, paths=PATHS)
    delegations = Delegations({key.keyid: key}, {BUNDLES: delegated})
    targets = Targets(version=1, expires=expires, delegations=delegations)
    return {
        "root": _signed(root, signers["root"]),
        "targets": _signed(targets, signers["targets"]),
        BUNDLES: _signed(Targets(version=1, expires=expires), signers[BUNDLES]),
    }


def add_target(
    bundles: bytes, path: str, target: Target, *, custom: Mapping[str, Any], signer: CryptoSigner, now: float
) -> bytes:
    """The next version of the `bundles` metadata with one more bundle; the same bytes if it already stands there."""
    signed = _read(bundles, Targets)
    if path in signed.targets and _target(signed.targets[path]) == target:
        return bundles
    file = TargetFile(target.size, {"sha256": target.sha256}, path, {"custom": dict(custom)})
    signed.targets[path] = file
    signed.version += 1
    signed.expires = moment(now) + timedelta(days=OFFLINE_DAYS)
    return _signed(signed, signer)


def target(bundles: bytes, path: str) -> Target | None:
    """How a bundle stands in the `bundles` metadata."""
    file = _read(bundles, Targets).targets.get(path)
    return _target(file) if file is not None else None


def check_initial(metadata: Mapping[str, bytes], online: Mapping[str, Key], now: float) -> None:
    """Check what a signer hands in to begin with.

    Raises:
        InvalidError: files missing, signatures that do not verify, or our online keys not in their roles.
    """
    if set(metadata) != set(OFFLINE_ROLES):
        raise InvalidError(f"a repository begins with {OFFLINE_ROLES}, not {sorted(metadata)}")
    root, targets = _load(metadata["root"], Root), _load(metadata["targets"], Targets)
    bundles = _load(metadata[BUNDLES], Targets)
    _verify(root.signed, "root", root)
    _verify(root.signed, "targets", targets)
    _verify(targets.signed, BUNDLES, bundles)
    for role in ONLINE_ROLES:
        if root.signed.roles[role].keyids != [online[role].keyid] or root.signed.roles[role].threshold != 1:
            raise InvalidError(f"the root metadata does not give the role {role} to this coordinator's key")
    if (root.signed.version, targets.signed.version) != (1, 1) or not root.signed.consistent_snapshot:
        raise InvalidError("a repository begins with version 1 and consistent snapshots")
    for signed in (root.signed, targets.signed, bundles.signed):
        _check_fresh(signed, now)
    if bundles.signed.targets:
        raise InvalidError("a repository begins without bundles")


def check_next(
    *, targets: bytes, current: bytes, submitted: bytes, expected: Mapping[str, Target], now: float
) -> list[str]:
    """Check the next `bundles` metadata against its delegation, its predecessor and what was asked for.

    Args:
        targets: metadata that delegates.
        current: the `bundles` metadata that is published.
        submitted: the one that the signer hands in.
        expected: bundles that wait for a signature, by path.
        now: seconds since the epoch.

    Returns: paths that are new in it.

    Raises:
        InvalidError: a signature that does not verify, an older version, a bundle that nobody asked for, or one
            that changed or is gone.
    """
    delegator, after = _load(targets, Targets), _load(submitted, Targets)
    before = _read(current, Targets)
    _verify(delegator.signed, BUNDLES, after)
    _check_fresh(after.signed, now)
    if after.signed.version <= before.version:
        raise InvalidError(f"bundles metadata {after.signed.version} does not follow {before.version}")
    for path, file in before.targets.items():
        if path not in after.signed.targets or _target(after.signed.targets[path]) != _target(file):
            raise InvalidError(f"{path} was signed before and must stay as it is")
    new = [path for path in after.signed.targets if path not in before.targets]
    for path in new:
        if path not in expected:
            raise InvalidError(f"{path} is no bundle that waits for a signature")
        if _target(after.signed.targets[path]) != expected[path]:
            raise InvalidError(f"{path} has another size or digest than the bundle that waits for a signature")
    return new


def snapshot(version: int, bundles: bytes, targets: bytes, *, signer: CryptoSigner, now: float) -> bytes:
    """Snapshot metadata over these two."""
    meta = {
        "targets.json": MetaFile(_read(targets, Targets).version),
        f"{BUNDLES}.json": MetaFile(_read(bundles, Targets).version),
    }
    return _signed(Snapshot(version=version, expires=moment(now) + SNAPSHOT_LIFE, meta=meta), signer)


def timestamp(version: int, snapshot_version: int, *, signer: CryptoSigner, now: float) -> bytes:
    """Timestamp metadata over a snapshot."""
    meta = MetaFile(snapshot_version)
    return _signed(Timestamp(version=version, expires=moment(now) + TIMESTAMP_LIFE, snapshot_meta=meta), signer)


def version_and_expiry(content: bytes) -> tuple[int, float]:
    """Version of any metadata, and when it expires, in seconds since the epoch."""
    signed = _any(content).signed
    return signed.version, signed.expires.timestamp()


def _signed(signed: Signed, signer: CryptoSigner) -> bytes:
    metadata: Metadata[Any] = Metadata(signed)
    metadata.sign(signer)
    return metadata.to_bytes()


def _any(content: bytes) -> Metadata[Any]:
    codec.check_size(content, limits.METADATA_BYTES, "TUF metadata")
    try:
        return Metadata.from_bytes(content)
    except (DeserializationError, RecursionError) as error:
        raise InvalidError(f"not TUF metadata: {error}") from error


def _load(content: bytes, kind: type[S]) -> Metadata[S]:
    metadata = _any(content)
    if not isinstance(metadata.signed, kind):
        raise InvalidError(f"expected {kind.__name__} metadata, got {type(metadata.signed).__name__}")
    return metadata


def _read(content: bytes, kind: type[S]) -> S:
    return _load(content, kind).signed


def _verify(delegator: Root | Targets, role: str, metadata: Metadata[Any]) -> None:
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        raise InvalidError(f"the {role} metadata does not verify: {error}") from error


def _check_fresh(signed: Signed, now: float) -> None:
    if signed.is_expired(moment(now)):
        raise InvalidError(f"{signed.type} metadata has expired")


def _target(file: TargetFile) -> Target:
    return Target(file.length, file.hashes.get("sha256", ""))
