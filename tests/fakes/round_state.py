"""A coordinator's database and blobs with one registered bundle, and devices that serve it: what rounds stand on."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import Connection, insert

from contract import bundle, profile, tensors
from contract.messages import BlobRef, Hello, Instruction, ProfileWindow, RoundReply, UploadBlock
from coordinator import migrate
from coordinator.fleet.tables import devices as devices_table
from coordinator.jobs.tables import jobs
from coordinator.registry.tables import bundles, model_versions, models, variants
from coordinator.rounds.service import Rounds
from coordinator.storage import Blobs, Storage, open_engine
from edge_agent.runtime import softmax
from edge_agent.training import TrainingRuntime, infer, train
from simulations.virtual_grid import measure
from tests.fakes import agent_bundles, agent_models

MODEL = "thirds"


def open_storage(state: Path, database: str | None = None) -> Storage:
    """Storage in a folder, or with another database, with all tables."""
    state.mkdir(parents=True, exist_ok=True)
    engine = open_engine(database or f"sqlite:///{state / 'coordinator.sqlite'}")
    migrate.upgrade(engine)
    return Storage(engine, Blobs(f"file://{state / 'blobs'}"))


def register(storage: Storage, *, version: int = 1, now: float = 0.0, **manifest: Any) -> str:
    """Register a version, a variant and a bundle; returns the bundle's digest."""
    data = agent_bundles.make(version=version, **manifest)
    ref = storage.blobs.put(data)
    weights = storage.blobs.put(bundle.unpack(data).files.get("weights", b"none"))
    made = {"model": MODEL, "version": version, "created_at": now}
    with storage.engine.begin() as connection:
        if version == 1:
            connection.execute(insert(models).values(name=MODEL, created_at=now, last_version=version))
        connection.execute(
            insert(model_versions).values(
                **made,
                task="thirds",
                weights_sha256=weights.sha256,
                metrics={},
                parents=[],
                details={},
                identity=f"made-{version}",
            )
        )
        part = {"name": "float", "tflite_sha256": ref.sha256, "report": {}, "gate": {"passed": True}}
        connection.execute(insert(variants).values(**made, **part))
        target = f"bundles/{MODEL}/{version}/float.zip"
        row = {"sha256": ref.sha256, "variant": "float", "target": target, "size": ref.size}
        connection.execute(insert(bundles).values(**made, **row))
    return ref.sha256


def add_devices(storage: Storage, bundle_sha256: str, *names: str, version: int = 1) -> None:
    """Devices that said hello and serve the bundle."""
    ref = {"model": MODEL, "version": version, "variant": "float", "target": "t", "sha256": bundle_sha256}
    hello = msgspec.convert(
        {
            "type": "hello",
            "outbox": "o",
            "starts": 1,
            "boot": "b",
            "connection": 1,
            "seq": 1,
            "agent_version": "0.1.0",
            "runtime_version": "2",
            "hardware_class": "x",
            "bundles": [ref],
            "samples": 60,
            "inferences": 0,
            "sent_at": 0.0,
        },
        Hello,
    )
    with storage.engine.begin() as connection:
        for name in names:
            row = {
                "name": name,
                "tags": {},
                "created_at": 0.0,
                "certificate_pem": "x",
                "hello": msgspec.to_builtins(hello),
            }
            connection.execute(insert(devices_table).values(**row))


class QueuedJobs:
    """Jobs that are only written down."""

    def queue(self, connection: Connection, *, id: str, kind: str, spec: dict[str, Any], now: float) -> None:  # noqa: A002 the port
        row = {"id": id, "kind": kind, "spec": spec, "state": "queued", "attempt": 0, "progress": 0.0, "message": ""}
        connection.execute(insert(jobs).values(**row, created_at=now))

    def request_cancel(self, connection: Connection, id: str, *, now: float) -> None:  # noqa: A002 the port
        connection.execute(jobs.update().where(jobs.c.id == id).values(cancelled_at=now))


def rounds(storage: Storage, *, smallest: int = 1) -> Rounds:
    """The service; a cohort query is names between commas."""
    return Rounds(
        storage, jobs=QueuedJobs(), cohort=lambda _connection, text: text.split(","), smallest_cohort=smallest
    )


class TrainingDevice:
    """What an agent does with an instruction, by the agent's own loop; `asked` are the ids it carried out."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.parts = bundle.unpack(agent_bundles.make())
        raw, self.y = agent_models.samples(60, seed=seed)
        self.x = self.parts.transform.apply(raw)
        self.asked: list[str] = []

    def carry_out(self, instruction: Instruction, weights: bytes) -> list[UploadBlock | RoundReply]:
        self.asked.append(instruction.id)
        runtime = TrainingRuntime(self.parts.files["training"], agent_models.SPEC)
        arrays = tensors.load(weights)
        if instruction.kind == "train":
            result = train(
                runtime,
                arrays,
                self.x,
                self.y,
                epochs=instruction.epochs,
                learning_rate=instruction.learning_rate,
                momentum=instruction.momentum,
                seed=instruction.seed,
            )
            update = tensors.dump(result.weights)
            ref = BlobRef(digest(update), len(update))
            metrics = {"loss": result.loss, "accuracy": result.accuracy}
            block = UploadBlock(blob=ref, index=0, count=1, data=update)
            return [block, self._reply(instruction, metrics, ref, None)]
        logits = infer(runtime, arrays, self.x)
        counts = profile.count(self.parts.profile.spec, self.parts.transform.features(self.x), softmax(logits))
        return [self._reply(instruction, measure(runtime, arrays, self.x, self.y), None, counts)]

    def _reply(self, instruction, metrics, weights, counts) -> RoundReply:
        return RoundReply(
            instruction=instruction.id,
            error="",
            examples=len(self.y),
            metrics=metrics,
            weights=weights,
            counts=counts,
        )


def digest(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def deliver(service: Rounds, storage: Storage, devices: dict[str, TrainingDevice], now: float) -> int:
    """What the gateway does in one tick: send what is due, take what the devices answer."""
    with storage.engine.begin() as connection:
        due = service.due(connection, now)
        service.sent(connection, [instruction.id for _, instruction in due], now)
    for name, instruction in due:
        with storage.engine.begin() as connection:
            assert service.may_fetch(connection, name, instruction.weights.sha256, now)
        for body in devices[name].carry_out(instruction, storage.blobs.get(instruction.weights.sha256)):
            with storage.engine.begin() as connection:
                take = service.on_upload_block if isinstance(body, UploadBlock) else service.on_round_reply
                take(connection, name, body, now)
    return len(due)


def window(bundle_sha256: str, *, samples: int, seed: int, shift: float = 0.0) -> ProfileWindow:
    """A profile window of random features and confidences; `shift` moves the features, in their deviations."""
    spec = bundle.unpack(agent_bundles.make()).profile.spec
    random = np.random.default_rng(seed)
    edges = [np.asarray(feature.edges) for feature in spec.features]
    columns = [random.normal(e.mean() + shift * e.std(), e.std() + 1e-6, samples) for e in edges]
    probabilities = random.dirichlet(np.full(spec.classes, 0.5), samples)
    counts = profile.count(spec, np.stack(columns, axis=1), probabilities)
    return ProfileWindow(
        bundle_sha256=bundle_sha256,
        profile_digest=spec.digest(),
        started_at=0.0,
        ended_at=1.0,
        counts=counts,
    )


__all__ = ["MODEL", "TrainingDevice", "add_devices", "deliver", "open_storage", "register", "rounds", "window"]
