"""The registry over a database of its own, with one model's parts to make bundles from."""

from pathlib import Path
from typing import Any

import numpy as np

from contract import codec, profile, tensors
from contract.training import TensorSpec, TrainingSpec
from contract.transform import Mean, TransformSpec
from coordinator.records import Gate, Variant, Version
from coordinator.registry.bundling import Recipe
from coordinator.registry.service import Registry
from coordinator.storage import Blobs, Storage, metadata, open_engine

SPEC = profile.ProfileSpec(features=[profile.FeatureBins("level", [0.5])], classes=2, confidence_edges=[0.5])
PASSED = Gate(passed=True)


class Site:
    """A registry over a new database, with a clock that counts and the requests that it sent to the signer."""

    def __init__(self, folder: Path, database: str) -> None:
        engine = open_engine(database)
        metadata.create_all(engine)
        self.storage = Storage(engine, Blobs(f"file://{folder / 'blobs'}"))
        self.asked: list[dict[str, Any]] = []
        self.now = 1_700_000_000.25
        self.root = b""  # the trusted metadata
        self.registry = Registry(self.storage, self._ask, root=lambda _connection: self.root, clock=self._clock)

    def _clock(self) -> float:
        self.now += 1
        return self.now

    def _ask(self, _connection: object, **request: Any) -> None:
        self.asked.append(request)

    def put(self, data: bytes) -> str:
        return self.storage.blobs.put(data).sha256

    def weights(self, value: float = 0.0) -> str:
        return self.put(tensors.dump({"w": np.full((2, 2), value, np.float32)}))

    def version(self, value: float = 0.0, **fields: Any) -> Version:
        fields = {"task": "t", "weights_sha256": self.weights(value), "metrics": {"accuracy": 0.9}, **fields}
        return self.registry.create_version("m", **fields)

    def variant(self, artifact: bytes = b"tflite", gate: Gate = PASSED, name: str = "int8") -> Variant:
        digest = self.put(artifact)
        return self.registry.create_variant("m", 1, name=name, tflite_sha256=digest, report={"bytes": 6}, gate=gate)

    def recipe(self, **parts: bytes) -> Recipe:
        contents = {
            "inference": b"tflite",
            "training": b"training",
            "weights": tensors.dump({"w": np.zeros((2, 2), np.float32)}),
            "transform": TransformSpec(input_shape=[2], steps=[], features=[Mean("level")]).encode(),
            "profile": codec.encode_json(profile.Reference(spec=SPEC, counts=profile.zero(SPEC))),
            "golden": tensors.dump({"x": np.zeros((1, 2), np.float32), "logits": np.zeros((1, 2), np.float32)}),
        } | parts
        return Recipe(
            parts={role: self.put(content) for role, content in contents.items()},
            labels=["no", "yes"],
            temperature=1.0,
            golden_tolerance=0.1,
            training=TrainingSpec(batch=4, weights=[TensorSpec("w", [2, 2])], state=[]),
            hardware_classes=["x86-64"],
        )
