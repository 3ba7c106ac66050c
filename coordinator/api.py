"""The HTTP API: who may call, how much they may send, and how errors are told. Routes come from the sub-packages."""

import hmac
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contract import limits
from contract.errors import ContractError, TooLargeError
from coordinator import records
from coordinator.answers import answer
from coordinator.errors import ConflictError, CoordinatorError, DeniedError, InvalidError, NotFoundError, SetupError
from coordinator.files import read_token
from coordinator.sql import DOES_NOT_FIT

BODY_BYTES = 4 * 1024 * 1024  # of a JSON request; metadata files and manifests fit
BLOB_PATH = "/v1/blobs"

_STATUS: dict[type[Exception], int] = {
    NotFoundError: 404,
    ConflictError: 409,
    InvalidError: 422,
    DeniedError: 403,
    TooLargeError: 413,
    SetupError: 503,
}


@dataclass(frozen=True)
class Tokens:
    """The bearer tokens: the operator's, and the signer's, which opens nothing but `/v1/signing`."""

    operator: str
    signer: str

    @classmethod
    def load(cls, state: Path) -> "Tokens":
        """Read them from a state folder.

        Raises:
            SetupError: see `files.read_token`.
        """
        return cls(read_token(state / "tokens" / "operator"), read_token(state / "tokens" / "signer"))


@dataclass(frozen=True)
class Routes:
    """Routers by who may call them: anyone, the operator, the signer."""

    open: Sequence[APIRouter]
    operator: Sequence[APIRouter]
    signer: Sequence[APIRouter]


def create_app(
    routes: Routes, tokens: Tokens, *, status: Callable[[], records.Status], metrics: Callable[[], bytes]
) -> FastAPI:
    """Put the API together.

    Args:
        routes: of the sub-packages.
        tokens: that callers must show.
        status: what `/v1/status` answers.
        metrics: Prometheus text.
    """
    app = FastAPI(title="Fieldfare coordinator", docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json")
    operator = [Depends(_bearer(tokens.operator))]
    signer = [Depends(_bearer(tokens.signer))]
    for router in routes.open:
        app.include_router(router)
    for router in [*routes.operator, _own(status, metrics)]:
        app.include_router(router, dependencies=operator)
    for router in routes.signer:
        app.include_router(router, dependencies=signer)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    app.add_middleware(BodyLimit)
    _tell_errors(app)
    return app


def _own(status: Callable[[], records.Status], metrics: Callable[[], bytes]) -> APIRouter:
    router = APIRouter(tags=["coordinator"])

    @router.get("/v1/status")
    def get_status() -> Response:
        return answer(status())

    @router.get("/metrics")
    def get_metrics() -> Response:
        return Response(metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _bearer(token: str) -> Callable[..., None]:
    def check(authorization: Annotated[str | None, Header()] = None) -> None:
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise HTTPException(401, "this needs a token: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})
        if not hmac.compare_digest(given.strip().encode(), token.encode()):
            raise DeniedError("this token does not open this")

    return check


def _tell_errors(app: FastAPI) -> None:
    def told(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": sentence}, status_code=status, headers=headers)

    @app.exception_handler(CoordinatorError)
    @app.exception_handler(ContractError)
    async def mendable(_request: Request, error: Exception) -> Response:
        default = 422 if isinstance(error, ContractError) else 500
        status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), default)
        return told(status, str(error))

    async def unfit(_request: Request, _error: Exception) -> Response:
        return told(422, "a value is too long or too large, or holds a NUL character")

    for kind in DOES_NOT_FIT:
        app.add_exception_handler(kind, unfit)

    @app.exception_handler(RequestValidationError)
    async def unreadable(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return told(422, f"{place}: {first['msg']}")

    @app.exception_handler(StarletteHTTPException)
    async def http(request: Request, error: StarletteHTTPException) -> Response:
        sentence = f"no such route: {request.method} {request.url.path}" if error.status_code == 404 else error.detail
        return told(error.status_code, str(sentence), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unforeseen(_request: Request, _error: Exception) -> Response:
        return told(500, "the coordinator failed at this; its log says why")


class BodyLimit:
    """ASGI middleware: a request with a body over the limit is cut off, whatever its headers say."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting its bytes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = limits.ARTIFACT_BYTES if scope["path"] == BLOB_PATH else BODY_BYTES
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > limit:
            await _too_large(limit)(scope, receive, send)
            return
        try:
            await self._app(scope, _counted(receive, limit), send)
        except _BodyTooLargeError:  # nothing was answered yet: routes read the whole body first
            await _too_large(limit)(scope, receive, send)


class _BodyTooLargeError(Exception):
    """More came than was declared, or nothing was declared."""


def _counted(receive: Receive, limit: int) -> Callable[[], Awaitable[Message]]:
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise _BodyTooLargeError
        return message

    return counted


def _too_large(limit: int) -> JSONResponse:
    return JSONResponse({"error": f"the request body is over the limit of {limit} bytes"}, status_code=413)
