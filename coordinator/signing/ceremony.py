"""Ceremonies: root and targets metadata that several people sign, one after the other, on machines without a network.

A ceremony folder holds nothing secret and travels on a stick; every holder keeps a folder of private keys at home.

    metadata/N.ROLE.json   what is published
    staged/N.ROLE.json     what is being signed
    public/NAME.pub        public keys, so that people see names

`publish` brings what is complete to the coordinator. The `bundles` metadata is no part of a ceremony: its signer makes
it, and signs it again where its key changes.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
from securesystemslib.signer import Key, Signer

from coordinator.errors import InvalidError, SetupError
from coordinator.files import write_private
from coordinator.signing import checks, keys, repository
from coordinator.signing.checks import Chain
from coordinator.signing.repository import BUNDLES, ONLINE_ROLES, PEOPLE, Holders

_OPEN = 0o644  # nothing in the folder is secret, and others must read it

Load = Callable[[str], Signer]  # name of a key to what signs with it


class File(msgspec.Struct, frozen=True, kw_only=True):
    """One metadata file as people see it.

    Attributes:
        state: `staged` (signatures are missing), `complete` (to be published) or `published`.
        expires_at: seconds since the epoch.
        needs: of each set of holders whose signatures it needs: a root needs those of the root before, too.
    """

    role: str
    version: int
    state: str
    expires_at: float
    needs: list["Need"]


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """Signatures that one set of holders owes: names (or ids) of keys, how many must sign and how many still must."""

    by: str
    threshold: int
    signed: list[str]
    unsigned: list[str]
    missing: int


class Publisher(Protocol):
    """What `publish` needs of `coordinator.client.Client`."""

    def signing_metadata(self, role: str) -> bytes | None:
        """The newest published metadata of a role."""
        ...

    def publish_metadata(self, files: Mapping[str, str]) -> dict[str, Any]:
        """Hand in metadata."""
        ...


class Ceremony:
    """One ceremony folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._published, self._staged, self._public = folder / "metadata", folder / "staged", folder / "public"

    # making versions

    @property
    def begun(self) -> bool:
        """Whether there is any root metadata."""
        return self._newest("root") is not None

    def init(
        self, holders: Mapping[str, Holders], bundles: Holders, now: float, *, days: int = repository.OFFLINE_DAYS
    ) -> None:
        """Stage version 1 of root and targets.

        Args:
            holders: of root, targets, snapshot and timestamp.
            bundles: of the delegated role.
            now: seconds since the epoch.
            days: until both expire.

        Raises:
            SetupError: the folder has a root already.
            InvalidError: a threshold that cannot be met.
        """
        if self.begun:
            raise SetupError(f"{self.folder}: this ceremony has begun; use `fieldfare keys rotate` to change it")
        root = repository.first_root(holders, now, days=days)
        self._stage("targets", repository.first_targets(bundles, now, days=days))
        self._stage("root", root)  # last: where it is, the other is

    def rotate(
        self, role: str, holders: Holders | None, now: float, *, days: int = repository.OFFLINE_DAYS
    ) -> list[str]:
        """Stage the next root or targets: other holders for a role, or the same for longer; names of what was staged.

        A version that is staged already is amended and loses its signatures.

        Args:
            role: root, targets, bundles, snapshot or timestamp.
            holders: None keeps them and renews what the role signs (the root, for online roles).
            now: seconds since the epoch.
            days: until the new version expires.

        Raises:
            SetupError: no root here.
            InvalidError: no such role, or a threshold that cannot be met.
        """
        if role not in (*PEOPLE, *ONLINE_ROLES, BUNDLES):
            raise InvalidError(f"no role {role!r}; there are {', '.join((*PEOPLE, *ONLINE_ROLES, BUNDLES))}")
        staged = []
        if role in {"root", *ONLINE_ROLES} or (role == "targets" and holders is not None):
            base, version = self._base("root")
            changed = {} if holders is None else {role: holders}
            staged.append(self._stage("root", repository.next_root(base, changed, now, version=version, days=days)))
        if role in {"targets", BUNDLES}:
            base, version = self._base("targets")
            bundles = holders if role == BUNDLES else None
            staged.append(
                self._stage("targets", repository.next_targets(base, bundles, now, version=version, days=days))
            )
        return staged

    def holders(self, role: str) -> Holders:
        """Who signs for a role by the newest metadata here; errors as in `rotate`."""
        delegator, _ = self._base("targets" if role == BUNDLES else "root")
        return repository.holders(delegator, role)

    # signing and looking

    def sign(self, keys_folder: Path, load: Load, *, only: Sequence[str] = ()) -> list[tuple[str, str]]:
        """Sign what is staged with every key of a folder that it names.

        Args:
            keys_folder: private keys.
            load: a key of it, by name; asked only for keys that are needed.
            only: names of keys; empty means all.

        Returns: (file, key) of every signature that was added.
        """
        made = []
        for path in self._staged_files():
            content = path.read_bytes()
            owed = {keyid for need in self._standings(path) for keyid in need[2].unsigned}
            for keyid, name in keys.names(keys_folder).items():
                if keyid in owed and (not only or name in only):
                    content = repository.sign(content, load(name))
                    made.append((path.name, name))
            write_private(path, content, mode=_OPEN)
        return made

    def status(self) -> list[File]:
        """The newest published version of each role and everything that is staged."""
        published = [path for role in PEOPLE if (path := self._newest_in(self._published, role)) is not None]
        return [self._look(path) for path in [*published, *self._staged_files()]]

    def contents(self) -> dict[str, dict[str, str]]:
        """What is staged, in words: what somebody signs for, and what was before where that changes.

        Names are what the folder says, and may lie; each key's id is beside it.
        """
        found = {}
        for path in self._staged_files():
            content, role = path.read_bytes(), path.name.split(".")[1]
            before = self._newest_in(self._published, role)
            _, expires = repository.version_and_expiry(content)
            facts = {"expires": time.strftime("%Y-%m-%d", time.gmtime(expires))}
            for held in (*PEOPLE, *ONLINE_ROLES) if role == "root" else (BUNDLES,):
                facts[held] = self._holders_in_words(content, held)
                was = self._holders_in_words(before.read_bytes(), held) if before is not None else facts[held]
                if was != facts[held]:
                    facts[held] += f" (was {was})"
            found[path.name] = facts
        return found

    def _holders_in_words(self, content: bytes, role: str) -> str:
        holders, names = repository.holders(content, role), self.known()
        keys_ = [f"{names.get(key.keyid, 'unknown')} {key.keyid[:16]}" for key in holders.keys]
        return f"{holders.threshold} of {', '.join(keys_)}"

    def known(self) -> dict[str, str]:
        """Key id to name of the public keys here."""
        return {keys.public(path).keyid: path.stem for path in sorted(self._public.glob("*.pub"))}

    def introduce(self, name: str, key: Key) -> None:
        """Keep a public key, so that people see its name; one that follows another of that name gets a number."""
        self._public.mkdir(parents=True, exist_ok=True)
        path, number = self._public / f"{name}.pub", 1
        while path.exists() and keys.public(path).keyid != key.keyid:
            number += 1
            path = self._public / f"{name}-{number}.pub"
        keys.write_public(path, key, mode=_OPEN)

    # publishing

    def complete(self) -> dict[str, bytes]:
        """What is staged, by file name, where every signature is there.

        Raises:
            InvalidError: signatures are missing; the message names them.
        """
        for path in self._staged_files():
            for by, _, standing in self._standings(path):
                if standing.missing:
                    names = self.known()
                    who = ", ".join(names.get(keyid, keyid[:8]) for keyid in standing.unsigned)
                    raise InvalidError(f"{path.name} needs {standing.missing} more signature(s) by {by}: {who}")
        return {path.name: path.read_bytes() for path in self._staged_files()}

    def settle(self, names: Sequence[str]) -> None:
        """These files are published."""
        self._published.mkdir(parents=True, exist_ok=True)
        for name in names:
            if (self._staged / name).exists():
                shutil.move(self._staged / name, self._published / name)

    def _look(self, path: Path) -> File:
        needs = [
            Need(
                by=by,
                threshold=threshold,
                signed=self._names(standing.signed),
                unsigned=self._names(standing.unsigned),
                missing=standing.missing,
            )
            for by, threshold, standing in self._standings(path)
        ]
        version, expires = repository.version_and_expiry(path.read_bytes())
        whole = all(need.missing == 0 for need in needs)
        state = "published" if path.parent == self._published else "complete" if whole else "staged"
        role = path.name.split(".")[1]
        return File(role=role, version=version, state=state, expires_at=expires, needs=needs)

    def _names(self, ids: Sequence[str]) -> list[str]:
        names = self.known()
        return [names.get(keyid, keyid[:8]) for keyid in ids]

    def _standings(self, path: Path) -> list[tuple[str, int, checks.Standing]]:
        """By whom, threshold and standing, for each set of holders whose signatures a file needs."""
        version, role = int(path.name.split(".")[0]), path.name.split(".")[1]
        content = path.read_bytes()
        delegators = []
        if role == "root":
            delegators.append((f"root {version}", content))
            before = self._path("root", version - 1)
            if version > 1 and before is not None:
                delegators.insert(0, (f"root {version - 1}", before.read_bytes()))
        else:
            newest = self._newest("root")
            if newest is None:
                raise SetupError(f"{self.folder}: no root metadata here; begin with: fieldfare keys init")
            delegators.append((f"root {newest.name.split('.')[0]}", newest.read_bytes()))
        return [
            (by, repository.holders(delegator, role).threshold, checks.standing(delegator, role, content))
            for by, delegator in delegators
        ]

    def _base(self, role: str) -> tuple[bytes, int]:
        """What the next version of a role is made from, and its version: what is staged is amended."""
        staged, published = self._newest_in(self._staged, role), self._newest_in(self._published, role)
        newest = staged or published
        if newest is None:
            raise SetupError(f"{self.folder}: no {role} metadata here; begin with: fieldfare keys init")
        return newest.read_bytes(), int(newest.name.split(".")[0]) + (0 if staged else 1)

    def _stage(self, role: str, content: bytes) -> str:
        version, _ = repository.version_and_expiry(content)
        self._staged.mkdir(parents=True, exist_ok=True)
        write_private(self._staged / f"{version}.{role}.json", content, mode=_OPEN)
        return f"{version}.{role}.json"

    def _path(self, role: str, version: int) -> Path | None:
        found = (folder / f"{version}.{role}.json" for folder in (self._staged, self._published))
        return next((path for path in found if path.exists()), None)

    def _newest(self, role: str) -> Path | None:
        return self._newest_in(self._staged, role) or self._newest_in(self._published, role)

    def _newest_in(self, folder: Path, role: str) -> Path | None:
        found = [path for path in folder.glob(f"*.{role}.json") if path.name.split(".")[0].isdecimal()]
        return max(found, key=lambda path: int(path.name.split(".")[0]), default=None)

    def _staged_files(self) -> list[Path]:
        found = [self._newest_in(self._staged, role) for role in PEOPLE]
        return [path for path in found if path is not None]


def chain(coordinator: Publisher) -> Chain | None:
    """What a coordinator has published; None where nobody has begun."""
    found = [coordinator.signing_metadata(role) for role in Chain._fields]
    return Chain(*(content for content in found if content is not None)) if None not in found else None


def publish(ceremony: Ceremony, coordinator: Publisher, bundles: Callable[[Holders], Signer], now: float) -> list[str]:
    """Bring what is complete to the coordinator, with `bundles` metadata where its key is new; names of the files.

    Args:
        ceremony: with something staged.
        coordinator: where to.
        bundles: gives the signer of `bundles`; asked only where that metadata must be signed (anew).
        now: seconds since the epoch.

    Raises:
        InvalidError: signatures are missing, or the coordinator's root is another's.
    """
    files, published = ceremony.complete(), chain(coordinator)
    targets = files.get(next((name for name in files if name.endswith(".targets.json")), ""))
    delegator = targets or (published.targets if published else None)
    if delegator is None:
        raise InvalidError("the coordinator's repository has not begun; it begins with version 1 of root and targets")
    if published is None or checks.standing(delegator, BUNDLES, published.bundles).missing:
        signer = bundles(repository.holders(delegator, BUNDLES))
        made = (
            repository.first_bundles(signer, now)
            if published is None
            else repository.renew_bundles(published.bundles, signer, now)
        )
        version, _ = repository.version_and_expiry(made)
        files[f"{version}.{BUNDLES}.json"] = made
    coordinator.publish_metadata({name: content.decode() for name, content in files.items()})
    ceremony.settle(list(files))
    return sorted(files)
