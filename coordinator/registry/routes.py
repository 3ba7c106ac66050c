"""HTTP of the registry."""

from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import Field

from contract.training import TrainingSpec
from coordinator import records
from coordinator.answers import Body, answer
from coordinator.errors import InvalidError
from coordinator.registry.bundling import Recipe
from coordinator.registry.overrides import Signed
from coordinator.registry.service import Registry
from coordinator.storage import Blobs


class NewSnapshot(Body):
    """POST /v1/snapshots."""

    task: str
    manifest: dict[str, Any]


class NewVersion(Body):
    """POST /v1/models/{model}/versions."""

    task: str
    metrics: dict[str, Any]
    weights_sha256: str = ""
    artifact_sha256: str | None = None
    snapshot_sha256: str | None = None
    parents: list[int] = Field(default_factory=list)
    run: str | None = None
    job: str | None = None
    reference_sha256: str | None = None
    details: dict[str, Any] = Field(default_factory=dict)


class NewGate(Body):
    """Whether a variant may ship."""

    passed: bool
    reasons: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


class NewVariant(Body):
    """POST /v1/models/{model}/versions/{version}/variants."""

    name: str
    tflite_sha256: str
    report: dict[str, Any]
    gate: NewGate


class NewOverride(Body):
    """POST /v1/models/{model}/versions/{version}/variants/{variant}/overrides."""

    statement: str
    keyid: str
    signature: str


class NewBundle(Body):
    """POST /v1/models/{model}/versions/{version}/variants/{variant}/bundles."""

    parts: dict[str, str]
    labels: list[str]
    temperature: float
    golden_tolerance: float
    training: dict[str, Any] | None = None
    hardware_classes: list[str] = Field(default_factory=list)
    min_agent_version: str = "0.1.0"
    min_runtime_version: str = ""

    def recipe(self) -> Recipe:
        """The same, with the training signature's description checked."""
        try:
            return msgspec.convert(self.model_dump(), Recipe)
        except msgspec.ValidationError as error:
            raise InvalidError(f"the bundle's {TrainingSpec.__name__}: {error}") from error


def router(registry: Registry, blobs: Blobs) -> APIRouter:
    """Routes over a registry and its blobs."""
    routes = APIRouter(prefix="/v1", tags=["registry"])
    _add_blobs(routes, blobs)
    _add_models(routes, registry)

    @routes.post("/snapshots")
    def create_snapshot(body: NewSnapshot) -> Response:
        return answer(registry.create_snapshot(task=body.task, manifest=body.manifest), status=201)

    @routes.get("/snapshots")
    def list_snapshots() -> Response:
        return answer(registry.snapshots())

    @routes.get("/bundles")
    def list_bundles() -> Response:
        return answer(registry.bundles())

    return routes


def _add_blobs(routes: APIRouter, blobs: Blobs) -> None:
    @routes.post("/blobs")
    async def put_blob(request: Request) -> Response:
        return answer(await run_in_threadpool(blobs.put, await request.body()), status=201)

    @routes.get("/blobs/{sha256}")
    def get_blob(sha256: str) -> Response:
        return Response(blobs.get(sha256), media_type="application/octet-stream")


def _add_models(routes: APIRouter, registry: Registry) -> None:
    @routes.get("/models")
    def list_models() -> Response:
        return answer(registry.models())

    @routes.post("/models/{model}/versions")
    def create_version(model: str, body: NewVersion) -> Response:
        return answer(registry.create_version(model, **body.model_dump()), status=201)

    @routes.get("/models/{model}/versions/{version}")
    def get_version(model: str, version: int) -> Response:
        return answer(registry.version(model, version))

    @routes.post("/models/{model}/versions/{version}/variants")
    def create_variant(model: str, version: int, body: NewVariant) -> Response:
        gate = records.Gate(**body.gate.model_dump())
        made = registry.create_variant(
            model, version, name=body.name, tflite_sha256=body.tflite_sha256, report=body.report, gate=gate
        )
        return answer(made, status=201)

    @routes.post("/models/{model}/versions/{version}/variants/{variant}/bundles")
    def create_bundle(model: str, version: int, variant: str, body: NewBundle) -> Response:
        return answer(registry.create_bundle(model, version, variant, body.recipe()), status=201)

    @routes.post("/models/{model}/versions/{version}/variants/{variant}/overrides")
    def create_override(model: str, version: int, variant: str, body: NewOverride) -> Response:
        return answer(registry.override(model, version, variant, Signed(**body.model_dump())), status=201)

    @routes.get("/models/{model}/gates")
    def get_gates(model: str) -> Response:
        return answer(registry.gates(model))

    @routes.post("/models/{model}/gates")
    def set_gates(model: str, body: dict[str, Any]) -> Response:
        return answer(registry.set_gates(model, body))
