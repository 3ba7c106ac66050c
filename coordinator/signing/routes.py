"""HTTP of the signing service; every route needs the signer's own token."""

from typing import Any

from fastapi import APIRouter, Response

from coordinator.answers import Body, answer
from coordinator.signing.service import Signing


class SignedMetadata(Body):
    """The next `bundles` metadata, the very text that was signed."""

    metadata: str


class Refusal(Body):
    """Why a bundle will not be signed."""

    reason: str


class FirstMetadata(Body):
    """Role to the very text of its metadata."""

    metadata: dict[str, str]


def router(signing: Signing) -> APIRouter:
    """Routes over the signing service."""
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
    def repository() -> Response:
        return answer(_state(signing))

    @routes.post("/repository")
    def begin(body: FirstMetadata) -> Response:
        signing.begin({role: text.encode() for role, text in body.metadata.items()})
        return answer(_state(signing))

    return routes


def _state(signing: Signing) -> dict[str, Any]:
    keys = {role: {"keyid": key.keyid, **key.to_dict()} for role, key in signing.online_keys.items()}
    return {"initialised": signing.initialised(), "keys": keys}
