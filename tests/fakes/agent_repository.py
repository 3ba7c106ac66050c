"""A TUF repository in memory, made with python-tuf, in the manner of its own RepositorySimulator."""

from datetime import UTC, datetime, timedelta

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

_ROLES = ("root", "targets", "snapshot", "timestamp")


class Repository:
    """Signed metadata by file name.

    Attributes:
        files: what a client may fetch, by name.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
        self.signers = {role: CryptoSigner.generate_ed25519() for role in (*_ROLES, "bundles")}
        self.root = Root(expires=self.expires, consistent_snapshot=True)
        for role in _ROLES:
            self.root.add_key(self.signers[role].public_key, role)
        key = self.signers["bundles"].public_key
        role = DelegatedRole("bundles", [key.keyid], 1, True, paths=["bundles/*/*/*"])
        self.targets = Targets(expires=self.expires, delegations=Delegations({key.keyid: key}, {"bundles": role}))
        self.bundles = Targets(expires=self.expires)
        self.snapshot, self.timestamp = Snapshot(expires=self.expires), Timestamp(expires=self.expires)
        self._publish("1.root.json", "root", self.root)
        self._publish("1.targets.json", "targets", self.targets)
        self.publish()

    @property
    def bootstrap(self) -> bytes:
        """What enrolment gives a device."""
        return self.files["1.root.json"]

    def add(self, path: str, data: bytes, **custom: object) -> None:
        """Sign a bundle in a new version of the metadata; `custom` as in `contract.targets.Custom`."""
        file = TargetFile.from_data(path, data, ["sha256"])
        _, model, version, _ = path.split("/")
        stated = {"model": model, "version": int(version), "variant": "float", **custom}
        self.bundles.targets[path] = TargetFile(file.length, file.hashes, path, {"custom": stated})
        self.bundles.version += 1
        self.snapshot.version += 1
        self.timestamp.version += 1
        self.publish()

    def publish(self, *, bundles_key: str = "bundles") -> None:
        """Sign everything that changes; with another role's key, as a thief of that key would."""
        self._publish(f"{self.bundles.version}.bundles.json", bundles_key, self.bundles)
        self.snapshot.meta = {"targets.json": MetaFile(1), "bundles.json": MetaFile(self.bundles.version)}
        self._publish(f"{self.snapshot.version}.snapshot.json", "snapshot", self.snapshot)
        self.timestamp.snapshot_meta = MetaFile(self.snapshot.version)
        self._publish("timestamp.json", "timestamp", self.timestamp)

    def _publish(self, name: str, signer: str, signed: Root | Targets | Snapshot | Timestamp) -> None:
        metadata = Metadata(signed)
        metadata.sign(self.signers[signer])
        self.files[name] = metadata.to_bytes()
