"""A coordinator's fleet services over a real database, with a signer in the same process and a clock to set."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Connection

from contract import bundle, codec, profile, signatures, tensors
from contract.messages import BundleRef, Hello, Instruction, Receipt, SignedReceipt
from contract.transform import Mean, TransformSpec
from coordinator import migrate, pki
from coordinator.config import Config
from coordinator.fleet.service import Fleet
from coordinator.records import SigningRequest
from coordinator.registry.tables import bundles, model_versions, models, variants
from coordinator.rollouts.service import Rollouts
from coordinator.signing import routes
from coordinator.signing.service import Signing
from coordinator.signing.signer import Signer
from coordinator.storage import Blobs, Storage, open_engine
from tests.fakes.broker_process import device_key_and_csr

START = 1_700_000_000.0


def make_bundle(version: int = 1, *, inference: bytes = b"not run here", **manifest: Any) -> bytes:
    """A bundle that holds together; its models are never run here."""
    transform = TransformSpec(input_shape=[2], steps=[], features=[Mean("level")])
    spec = profile.ProfileSpec(features=[profile.FeatureBins("level", [0.5])], classes=2, confidence_edges=[0.5])
    files = {
        "inference": inference,
        "transform": transform.encode(),
        "profile": codec.encode_json(profile.Reference(spec=spec, counts=profile.zero(spec))),
        "golden": tensors.dump({"x": np.zeros((1, 2), np.float32), "logits": np.zeros((1, 2), np.float32)}),
    }
    fields: dict[str, Any] = {
        "model": "digits",
        "version": version,
        "variant": "int8",
        "labels": ["no", "yes"],
        "temperature": 1.0,
        "golden_tolerance": 0.1,
        "training": None,
        "hardware_classes": [],
        "min_agent_version": "0.1.0",
        "created_at": 1_700_000_000,
    }
    return bundle.pack(bundle.Manifest(**{**fields, **manifest}), files)


class LocalCoordinator:
    """`signer.Coordinator` over the service itself, in place of HTTP; answers pass through JSON as they would."""

    def __init__(self, signing: Signing, mode: str = "laptop") -> None:
        self.signing = signing
        self.mode = mode

    def get(self, path: str, kind: type[Any], **_query: object) -> Any:
        assert path == "/v1/signing/repository"
        return msgspec.json.decode(msgspec.json.encode(routes.state(self.signing, self.mode)), type=kind)

    def signing_metadata(self, role: str) -> bytes | None:
        chain = self.signing.chain()
        return getattr(chain, role) if chain is not None else None

    def publish_metadata(self, files: Mapping[str, str]) -> dict[str, Any]:
        self.signing.publish({name: text.encode() for name, text in files.items()})
        return {}

    def signing_requests(self) -> list[SigningRequest]:
        return self.signing.requests()

    def signing_bundle(self, sha256: str) -> bytes:
        return self.signing.bundle(sha256)

    def submit_signature(self, id: str, metadata: str) -> SigningRequest:  # noqa: A002 its name
        return self.signing.submit(id, metadata.encode())

    def refuse_signature(self, id: str, reason: str) -> SigningRequest:  # noqa: A002 its name
        return self.signing.refuse(id, reason)


class NoCommands:
    """An operator who asks for nothing."""

    def due(self, *_: object) -> list[Any]:
        return []

    def sent(self, *_: object) -> None:
        pass

    def unanswered(self, *_: object) -> list[Any]:
        return []


class Instructions:
    """The rounds, in memory."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, Instruction]] = []
        self.carried: list[str] = []
        self.weights: set[tuple[str, str]] = set()

    def due(self, connection: Connection, now: float) -> list[tuple[str, Instruction]]:
        return [(device, one) for device, one in self.waiting if one.id not in self.carried]

    def sent(self, connection: Connection, ids: Collection[str], now: float) -> None:
        self.carried += ids

    def unanswered(self, connection: Connection, device: str, now: float) -> list[Instruction]:
        return [one for name, one in self.waiting if name == device and one.expires_at > now]

    def may_fetch(self, connection: Connection, device: str, sha256: str, now: float) -> bool:
        return (device, sha256) in self.weights


class Site:
    """Everything of the fleet but the sockets."""

    def __init__(self, state: Path, *, database: str | None = None, **settings: Any) -> None:
        self.state = state
        self.now = START
        pki.create(state)
        self.engine = open_engine(database or f"sqlite:///{state / 'db.sqlite'}")
        migrate.upgrade(self.engine)
        self.storage = Storage(self.engine, Blobs(f"file://{state / 'blobs'}"))
        self.config = Config(api_port=1, broker_port=2, **settings)
        self.signing = Signing(self.storage, state / "pki" / "tuf", clock=self.clock)
        self.authority = pki.Authority.load(state)
        self.fleet = Fleet(self.storage, self.config, self.authority, clock=self.clock)
        self.rollouts = Rollouts(self.storage, self.fleet, self.signing, clock=self.clock)
        self.signer = Signer(state / "signer")
        self.local = LocalCoordinator(self.signing)
        self.keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.hellos = 0

    def clock(self) -> float:
        return self.now

    def close(self) -> None:
        self.engine.dispose()

    def enrol(self, name: str, *, tags: dict[str, str] | None = None, hardware_class: str = "x86-64") -> None:
        token = self.fleet.add(name, tags).token
        self.keys[name], csr = device_key_and_csr(name)
        self.fleet.enrol(token, csr, hardware_class)

    def hello(self, name: str, boot: str = "b1", connection: int = 1) -> Hello:
        self.hellos += 1
        return Hello(
            outbox="o1",
            starts=1,
            boot=boot,
            connection=connection,
            seq=self.hellos,
            agent_version="0.1.0",
            runtime_version="litert",
            hardware_class="x86-64",
            bundles=[],
            samples=3,
            inferences=7,
            sent_at=self.now,
        )

    def begin(self) -> None:
        self.signer.begin(self.local, self.now)

    def register(
        self, version: int = 1, *, size: int | None = None, data: bytes | None = None, **manifest: Any
    ) -> BundleRef:
        """A bundle in the registry that waits for its signature; one that runs comes as `data`."""
        data = make_bundle(version, **manifest) if data is None else data
        model, variant = (found := bundle.unpack(data).manifest).model, found.variant
        digest = hashlib.sha256(data).hexdigest()
        blob = self.storage.blobs.put_artifact(data)
        target = bundle.target_path(model, version, variant, digest)
        ref = BundleRef(model=model, version=version, variant=variant, target=target, sha256=digest)
        common = {"model": model, "version": version, "created_at": self.now}
        with self.engine.begin() as connection:
            if version == 1:
                row = {"name": model, "created_at": self.now, "last_version": 1}
                connection.execute(models.insert().values(**row))
            details = {"task": "t", "weights_sha256": digest, "metrics": {}, "parents": [], "details": {}}
            connection.execute(model_versions.insert().values(**common, **details, identity=str(version)))
            row = {**common, "name": variant, "tflite_sha256": digest, "report": {}, "gate": {}}
            connection.execute(variants.insert().values(**row))
            row = {**common, "variant": variant, "sha256": digest, "target": target, "size": len(data)}
            connection.execute(bundles.insert().values(**row))
            custom = {"hardware_classes": manifest.get("hardware_classes", []), "blocks": blob.blocks}
            self.signing.request(
                connection, sha256=digest, target=target, size=size or len(data), custom=custom, now=self.now
            )
        return ref

    def sign(self) -> int:
        return self.signer.work(self.local, self.now)

    def receipt(self, name: str, ref: BundleRef, *, outcome: str = "activated", **fields: Any) -> SignedReceipt:
        """A device's signed word; `device` and `key` may be another's."""
        key = fields.pop("key", self.keys[name])
        fields = {"device": name, "rollout": None, "reason": "", **fields}
        payload = codec.encode(Receipt(bundle=ref, outcome=outcome, sent_at=self.now, **fields))
        return SignedReceipt(payload=payload, signature=signatures.sign(key, payload))

    def answer(self, name: str, ref: BundleRef, *, outcome: str = "activated", **fields: Any) -> None:
        with self.engine.begin() as connection:
            self.rollouts.on_receipt(connection, name, self.receipt(name, ref, outcome=outcome, **fields), self.now)
