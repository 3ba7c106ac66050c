"""HTTP of the signing service: for the signer, with its own token, and for devices that fetch metadata."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, Response

from coordinator.answers import Body, answer
from coordinator.errors import NotFoundError
from coordinator.signing import repository
from coordinator.signing.checks import Chain
from coordinator.signing.service import Signing
from coordinator.storage import Storage


class SignedMetadata(Body):
    """The next `bundles` metadata, the very text that was signed."""

    metadata: str


class Refusal(Body):
    """Why a bundle will not be signed."""

    reason: str


class Files(Body):
    """Metadata by file name, for example `2.root.json`: the very texts that were signed."""

    metadata: dict[str, str]


def router(signing: Signing, mode: str) -> APIRouter:
    """Routes over the signing service; `mode` as in coordinator.toml."""
    routes = APIRouter(prefix="/v1/signing", tags=["signing"])

    @routes.get("/requests")
    def list_requests(state: str = "pending") -> Response:
        return answer(signing.requests(state=state))

    @routes.get("/bundles/{sha256}")
    def get_bundle(sha256: str) -> Response:
        return Response(signing.bundle(sha256), media_type="application/octet-stream")

    @routes.post("/requests/{id}/metadata")
    def submit(id: str, body: SignedMetadata) -> Response:  # noqa: A002 its name
        return answer(signing.submit(id, body.metadata.encode()))

    @routes.post("/requests/{id}/refusal")
    def refuse(id: str, body: Refusal) -> Response:  # noqa: A002 its name
        return answer(signing.refuse(id, body.reason))

    @routes.get("/repository")
    def get_repository() -> Response:
        return answer(state(signing, mode))

    @routes.post("/repository")
    def publish(body: Files) -> Response:
        signing.publish({name: text.encode() for name, text in body.metadata.items()})
        return answer(state(signing, mode))

    @routes.get("/metadata/{role}")
    def get_metadata(role: str) -> Response:
        chain = signing.chain()
        if chain is None or role not in Chain._fields:
            raise NotFoundError(f"no {role[:64]} metadata is published")
        return Response(getattr(chain, role), media_type="application/json")

    return routes


def devices(signing: Signing, storage: Storage, device: Callable[..., str]) -> APIRouter:
    """Where devices fetch metadata over HTTPS; `device` is the dependency that lets enrolled ones in."""
    routes = APIRouter(prefix="/v1/tuf", tags=["signing"], dependencies=[Depends(device)])

    @routes.get("/{name}")
    def get_file(name: str) -> Response:
        with storage.engine.begin() as connection:
            content = signing.packed(connection, name)
        if content is None:
            raise NotFoundError(f"no metadata {name[:128]}")
        return Response(content, media_type="application/json", headers={"Content-Encoding": "deflate"})

    return routes


def state(signing: Signing, mode: str) -> dict[str, Any]:
    """Whether a repository is there, and the online keys that a root should name."""
    keys = {role: {"keyid": key.keyid, **key.to_dict()} for role, key in signing.online_keys().items()}
    chain = signing.chain()
    versions = {}
    if chain is not None:
        versions = {role: repository.version_and_expiry(getattr(chain, role))[0] for role in Chain._fields}
    return {"initialised": chain is not None, "mode": mode, "keys": keys, "versions": versions}
