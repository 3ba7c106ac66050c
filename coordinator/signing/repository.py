"""The files of our TUF repository: made and signed, bytes in and bytes out (The Update Framework, spec 1.0).

    root       names the keys of all roles                     a threshold of people, offline
    targets    delegates `bundles/*/*/*` to `bundles`           a threshold of people, offline
    bundles    every bundle with size, digest and needs        signer, grows with each bundle
    snapshot   versions of targets and bundles                 coordinator (online)
    timestamp  version of snapshot, short-lived                coordinator (online)

A stolen online key can hold devices back on what they have until it expires, never give them anything new.
`checks` says what a coordinator takes from those who hold the other keys.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Signer
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from contract import codec, limits
from contract.targets import CREATED
from coordinator.errors import InvalidError

BUNDLES = "bundles"
PATHS = ["bundles/*/*/*"]  # contract.bundle.target_path: model, version, file
PEOPLE = ("root", "targets")
ONLINE_ROLES = ("snapshot", "timestamp")
OFFLINE_DAYS = 365
SNAPSHOT_LIFE = timedelta(days=7)
TIMESTAMP_LIFE = timedelta(days=1)

S = TypeVar("S", Root, Targets)
Made = TypeVar("Made", Root, Targets, Snapshot, Timestamp)


class Target(NamedTuple):
    """A bundle as it must stand in the metadata."""

    size: int
    sha256: str


class Holders(NamedTuple):
    """Who signs for a role: any `threshold` of these public keys."""

    keys: Sequence[Key]
    threshold: int = 1

    def check(self, role: str) -> "Holders":
        """Itself, where signing is possible and no key counts twice.

        Raises:
            InvalidError: it is not.
        """
        ids = [str(key.keyval) for key in self.keys]
        if len(set(ids)) != len(ids):
            raise InvalidError(f"{role}: a key is named twice; a threshold counts different keys")
        if not 1 <= self.threshold <= len(ids):
            raise InvalidError(f"{role}: {self.threshold} of {len(ids)} keys must sign; use 1 to {len(ids)}")
        return self


def moment(now: float) -> datetime:
    """TUF's times: UTC, whole seconds."""
    return datetime.fromtimestamp(int(now), UTC)


# root and targets: drafts, which people sign one by one


def first_root(given: Mapping[str, Holders], now: float, *, days: int = OFFLINE_DAYS) -> bytes:
    """Version 1 of the root metadata, not signed.

    Args:
        given: holders of root, targets, snapshot and timestamp.
        now: seconds since the epoch.
        days: until it expires.

    Raises:
        InvalidError: a threshold that cannot be met.
    """
    root = Root(version=1, consistent_snapshot=True)
    for role in (*PEOPLE, *ONLINE_ROLES):
        _give(root, role, given[role])
    return _draft(root, now, days)


def first_targets(bundles: Holders, now: float, *, days: int = OFFLINE_DAYS) -> bytes:
    """Version 1 of the top-level targets metadata, not signed; errors as in `first_root`."""
    targets = Targets(version=1, delegations=_delegations(bundles))
    return _draft(targets, now, days)


def first_bundles(signer: Signer, now: float) -> bytes:
    """Version 1 of the `bundles` metadata, without bundles."""
    return sign(_draft(Targets(version=1), now, OFFLINE_DAYS), signer)


def next_root(
    current: bytes, changed: Mapping[str, Holders], now: float, *, version: int, days: int = OFFLINE_DAYS
) -> bytes:
    """Root metadata with other holders for some roles, or none, and a new expiry; not signed.

    Raises:
        InvalidError: a threshold that cannot be met.
    """
    root = read(current, Root)
    for role, others in changed.items():
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        _give(root, role, others)
    root.version = version
    return _draft(root, now, days)


def next_targets(
    current: bytes, bundles: Holders | None, now: float, *, version: int, days: int = OFFLINE_DAYS
) -> bytes:
    """Targets metadata with another holder of `bundles`, or the same, and a new expiry; not signed."""
    targets = read(current, Targets)
    if bundles is not None:
        targets.delegations = _delegations(bundles)
    targets.version = version
    return _draft(targets, now, days)


def sign(content: bytes, signer: Signer) -> bytes:
    """The same metadata with one more signature; a signature of that key that was there is replaced."""
    metadata = decode(content)
    metadata.sign(signer, append=True)
    return metadata.to_bytes()


# bundles, snapshot, timestamp: signed by one key as they are made


def add_target(
    bundles: bytes, path: str, target: Target, *, custom: Mapping[str, Any], signer: Signer, now: float
) -> bytes:
    """The next version of the `bundles` metadata with one more bundle; the same bytes if it already stands there."""
    signed = read(bundles, Targets)
    if path in signed.targets and stated(signed.targets[path]) == target:
        return bundles
    signed.targets[path] = TargetFile(target.size, {"sha256": target.sha256}, path, {"custom": dict(custom)})
    return _next(signed, signer, now)


def renew_bundles(bundles: bytes, signer: Signer, now: float) -> bytes:
    """The next version of the `bundles` metadata with the same bundles: a later expiry, or another key."""
    return _next(read(bundles, Targets), signer, now)


def _next(bundles: Targets, signer: Signer, now: float) -> bytes:
    bundles.version += 1
    return sign(_draft(bundles, now, OFFLINE_DAYS), signer)


def target(bundles: bytes, path: str) -> Target | None:
    """How a bundle stands in the `bundles` metadata."""
    file = read(bundles, Targets).targets.get(path)
    return stated(file) if file is not None else None


def paths(bundles: bytes) -> set[str]:
    """Every bundle in the `bundles` metadata."""
    return set(read(bundles, Targets).targets)


def snapshot(version: int, bundles: bytes, targets: bytes, *, signer: Signer, now: float) -> bytes:
    """Snapshot metadata over these two."""
    meta = {
        "targets.json": MetaFile(read(targets, Targets).version),
        f"{BUNDLES}.json": MetaFile(read(bundles, Targets).version),
    }
    made = Snapshot(version=version, expires=moment(now) + SNAPSHOT_LIFE, meta=meta)
    return sign(_created(made, now).to_bytes(), signer)


def timestamp(version: int, snapshot_version: int, *, signer: Signer, now: float) -> bytes:
    """Timestamp metadata over a snapshot."""
    meta = MetaFile(snapshot_version)
    made = Timestamp(version=version, expires=moment(now) + TIMESTAMP_LIFE, snapshot_meta=meta)
    return sign(_created(made, now).to_bytes(), signer)


# reading


def version_and_expiry(content: bytes) -> tuple[int, float]:
    """Version of any metadata, and when it expires, in seconds since the epoch."""
    signed = decode(content).signed
    return signed.version, signed.expires.timestamp()


def holders(delegator: bytes, role: str) -> Holders:
    """Who signs for `role` by the root metadata, or by targets for `bundles`.

    Raises:
        InvalidError: the metadata names no such role.
    """
    signed = decode(delegator).signed
    try:
        found = signed.get_delegated_role(role)
        return Holders([signed.get_key(keyid) for keyid in found.keyids], found.threshold)
    except (AttributeError, ValueError) as error:
        raise InvalidError(f"the {signed.type} metadata names no role {role}") from error


def load(content: bytes, kind: type[S]) -> Metadata[S]:
    """Metadata of a kind, with its signatures, which are NOT checked.

    Raises:
        InvalidError: something else.
        TooLargeError: larger than any metadata.
    """
    metadata = decode(content)
    if not isinstance(metadata.signed, kind):
        raise InvalidError(f"expected {kind.__name__} metadata, got {type(metadata.signed).__name__}")
    return metadata


def read(content: bytes, kind: type[S]) -> S:
    """What is signed in metadata of a kind; errors as in `load`."""
    return load(content, kind).signed


def signed_by(content: bytes, key: Key) -> bool:
    """Whether a key signed metadata."""
    metadata = decode(content)
    try:
        key.verify_signature(metadata.signatures[key.keyid], metadata.signed_bytes)
    except (KeyError, VerificationError, UnverifiedSignatureError):
        return False
    return True


def stated(file: TargetFile) -> Target:
    """Size and digest of a target."""
    return Target(file.length, file.hashes.get("sha256", ""))


def _give(root: Root, role: str, given: Holders) -> None:
    given.check(role)
    for key in given.keys:
        root.add_key(key, role)
    root.roles[role].threshold = given.threshold


def _delegations(bundles: Holders) -> Delegations:
    bundles.check(BUNDLES)
    ids = [key.keyid for key in bundles.keys]
    role = DelegatedRole(BUNDLES, ids, bundles.threshold, terminating=True, paths=PATHS)
    return Delegations({key.keyid: key for key in bundles.keys}, {BUNDLES: role})


def _draft(signed: S, now: float, days: int) -> bytes:
    signed.expires = moment(now) + timedelta(days=days)
    return _created(signed, now).to_bytes()


def _created(signed: Made, now: float) -> Metadata[Made]:
    """With the time at which it was made: devices whose clock is behind take it for the time."""
    signed.unrecognized_fields[CREATED] = int(now)
    return Metadata(signed)


def decode(content: bytes) -> Metadata[Any]:
    """Any metadata, with its signatures, which are NOT checked; errors as in `load`."""
    codec.check_size(content, limits.METADATA_BYTES, "TUF metadata")
    try:
        return Metadata.from_bytes(content)
    except (DeserializationError, RecursionError) as error:
        raise InvalidError(f"not TUF metadata: {error}") from error
