"""What a coordinator takes from those who hold the keys that it lacks: by python-tuf's own rules, and some of ours."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Signed, Targets

from coordinator.errors import InvalidError
from coordinator.signing import repository
from coordinator.signing.repository import BUNDLES, ONLINE_ROLES, PATHS, Target, load, moment, stated


class Chain(NamedTuple):
    """The newest root, targets and bundles metadata."""

    root: bytes
    targets: bytes
    bundles: bytes


class Update(NamedTuple):
    """What stands after an update, and which bundles are new in it."""

    chain: Chain
    new: list[str]


class Standing(NamedTuple):
    """Signatures of one role on one file: ids of the keys that signed and did not, and how many are missing."""

    signed: list[str]
    unsigned: list[str]
    missing: int


def check_update(
    current: Chain | None,
    files: Mapping[str, bytes],
    *,
    online: Mapping[str, Collection[str]],
    expected: Mapping[str, Target],
    now: float,
) -> Update:
    """Check new metadata as a whole against what is published.

    Args:
        current: what is published; None in the beginning, when version 1 of all three must come.
        files: by name, for example `2.root.json`; several roots in a row may come at once.
        online: ids of the keys that this coordinator has, for snapshot and timestamp.
        expected: bundles that wait for a signature, by path.
        now: seconds since the epoch.

    Raises:
        InvalidError: too few signatures, a version that is left out or not newer, an online role that goes to
            another coordinator, a bundle that nobody asked for, or one that changed or is gone, expired metadata.
    """
    by_role = _by_role(files)
    root = _roots(current.root if current else None, by_role.pop("root", {}))
    targets = _one(by_role.pop("targets", {}), current.targets if current else None, "targets", by_one=True)
    bundles = _one(by_role.pop(BUNDLES, {}), current.bundles if current else None, BUNDLES, by_one=False)
    if by_role:
        raise InvalidError(f"metadata of {', '.join(sorted(by_role))} is not taken; it is made here")
    chain = Chain(root, targets, bundles)
    _check_chain(chain, online, now)
    return Update(chain, _new_bundles(current.bundles if current else None, bundles, expected))


def standing(delegator: bytes, role: str, content: bytes) -> Standing:
    """Who has signed a file, by the metadata that names the role's keys.

    For the root's own version 1 and next versions call it twice: with the file itself, and with its predecessor.
    """
    metadata = repository.decode(content)
    try:
        found = repository.decode(delegator).signed.get_verification_result(
            role, metadata.signed_bytes, metadata.signatures
        )
    except (AttributeError, ValueError) as error:
        raise InvalidError(f"no metadata that names keys for {role}") from error
    return Standing(sorted(found.signed), sorted(found.unsigned), found.missing)


def _by_role(files: Mapping[str, bytes]) -> dict[str, dict[int, bytes]]:
    found: dict[str, dict[int, bytes]] = {}
    for name, content in files.items():
        version, _, rest = name.partition(".")
        role = rest.removesuffix(".json")
        stated_version, _ = repository.version_and_expiry(content)
        if f"{stated_version}.{role}.json" != name or not version.isdecimal():
            raise InvalidError(f"{name[:80]}: holds version {stated_version}; names are like 2.root.json")
        found.setdefault(role, {})[stated_version] = content
    return found


def _roots(current: bytes | None, submitted: Mapping[int, bytes]) -> bytes:
    """The newest root, reached version by version, each signed by its own holders and those before."""
    newest = current
    for version in sorted(submitted):
        after = load(submitted[version], Root)
        before = load(newest, Root).signed if newest is not None else None
        due = before.version + 1 if before is not None else 1
        if version != due:
            raise InvalidError(f"root metadata {version}: version {due} is next, and none may be left out")
        if before is not None:
            _verify(before, "root", after)
        _verify(after.signed, "root", after)
        newest = submitted[version]
    if newest is None:
        raise InvalidError("a repository begins with root metadata")
    return newest


def _one(submitted: Mapping[int, bytes], current: bytes | None, role: str, *, by_one: bool) -> bytes:
    """The newest file of a role: the submitted one, or the one that is there."""
    if len(submitted) > 1:
        raise InvalidError(f"more than one version of {role}")
    before = load(current, Targets).signed.version if current is not None else 0
    for version, content in submitted.items():
        load(content, Targets)
        if version <= before or (by_one and version != before + 1):
            raise InvalidError(f"{role} metadata {version} does not follow {before}")
        return content
    if current is None:
        raise InvalidError(f"a repository begins with {role} metadata")
    return current


def _check_chain(chain: Chain, online: Mapping[str, Collection[str]], now: float) -> None:
    root, targets = load(chain.root, Root), load(chain.targets, Targets)
    bundles = load(chain.bundles, Targets)
    _verify(root.signed, "targets", targets)
    delegations = targets.signed.delegations
    roles = delegations.roles if delegations is not None else None
    if targets.signed.targets or roles is None or list(roles) != [BUNDLES] or roles[BUNDLES].paths != PATHS:
        raise InvalidError(f"the targets metadata must delegate {PATHS} to {BUNDLES}, and nothing else")
    _verify(targets.signed, BUNDLES, bundles)
    for role in ONLINE_ROLES:
        given = root.signed.roles[role]
        if len(given.keyids) != 1 or given.threshold != 1 or given.keyids[0] not in online[role]:
            raise InvalidError(
                f"the root metadata does not give the role {role} to a key of this coordinator; "
                "its public keys come from: fieldfare keys online"
            )
    if not root.signed.consistent_snapshot:
        raise InvalidError("the root metadata must ask for consistent snapshots")
    for signed in (root.signed, targets.signed, bundles.signed):
        _check_fresh(signed, moment(now))


def _new_bundles(current: bytes | None, submitted: bytes, expected: Mapping[str, Target]) -> list[str]:
    before = load(current, Targets).signed.targets if current is not None else {}
    after = load(submitted, Targets).signed.targets
    for path, file in before.items():
        if path not in after or stated(after[path]) != stated(file):
            raise InvalidError(f"{path} was signed before and must stay as it is")
    new = [path for path in after if path not in before]
    for path in new:
        if path not in expected:
            raise InvalidError(f"{path} is no bundle that waits for a signature")
        if stated(after[path]) != expected[path]:
            raise InvalidError(f"{path} has another size or digest than the bundle that waits for a signature")
    return new


def _verify(delegator: Root | Targets, role: str, metadata: Metadata[Any]) -> None:
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        raise InvalidError(f"the {role} metadata does not verify: {error}") from error


def _check_fresh(signed: Signed, now: datetime) -> None:
    if signed.is_expired(now):
        raise InvalidError(f"{signed.type} metadata has expired")
