import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from sqlalchemy.exc import DataError

from contract import limits
from contract.errors import BundleError, TooLargeError
from coordinator import api
from coordinator.answers import Body, answer
from coordinator.errors import ConflictError, DeniedError, InvalidError, NotFoundError, SetupError
from coordinator.records import Status

TOKENS = api.Tokens(operator="operator-secret", signer="signer-secret")
OPERATOR = {"Authorization": "Bearer operator-secret"}
SIGNER = {"Authorization": "Bearer signer-secret"}
STATUS = Status(
    version="1",
    started_at=0.0,
    broker={},
    devices={},
    models=0,
    jobs={},
    rollouts={},
    runs={},
    signing={},
    dropped={},
)
ERRORS = {
    "missing": (NotFoundError("no such thing"), 404),
    "twice": (ConflictError("it is there"), 409),
    "senseless": (InvalidError("that makes no sense"), 422),
    "denied": (DeniedError("not for you"), 403),
    "bundle": (BundleError("the parts disagree"), 422),
    "large": (TooLargeError("a blob", size=2, limit=1), 413),
    "setup": (SetupError("mosquitto is missing"), 503),
}


class Sum(Body):
    a: int
    b: int


def operator_routes() -> APIRouter:
    routes = APIRouter(prefix="/v1")

    @routes.get("/fail/{name}")
    def fail(name: str) -> None:
        if name not in ERRORS:
            raise RuntimeError("a secret inside")
        raise ERRORS[name][0]

    @routes.post("/sum")
    def add(body: Sum) -> object:
        return answer({"sum": body.a + body.b})

    @routes.post("/blobs")
    async def swallow(request: Request) -> object:
        return answer({"size": len(await request.body())})

    return routes


def signer_routes() -> APIRouter:
    routes = APIRouter(prefix="/v1/signing")

    @routes.get("/requests")
    def requests() -> object:
        return answer([])

    return routes


class Web:
    """Asks the application itself; no socket."""

    def __init__(self, app: FastAPI) -> None:
        self._transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)


@pytest.fixture
def web() -> Web:
    routes = api.Routes(open=[], operator=[operator_routes()], signer=[signer_routes()])
    return Web(api.create_app(routes, TOKENS, status=lambda: STATUS, metrics=lambda: b"up 1\n"))


async def stream(parts: Sequence[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def test_anyone_may_ask_whether_it_is_healthy(web: Web) -> None:
    assert web.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/v1/status", "/metrics", "/v1/fail/missing", "/v1/signing/requests"])
@pytest.mark.parametrize(
    ("header", "status"),
    [("", 401), ("Bearer ", 401), ("Basic b3A=", 401), ("Bearer wrong", 403), ("Bearer ünïcode", 403)],
)
def test_without_the_right_token_nothing_opens(web: Web, path: str, header: str, status: int) -> None:
    got = web.get(path, headers={"Authorization": header.encode()} if header else {})
    assert got.status_code == status
    assert set(got.json()) == {"error"}
    assert "secret" not in got.text


def test_operator_and_signer_open_their_own_routes_alone(web: Web) -> None:
    assert web.get("/v1/status", headers=OPERATOR).json()["version"] == "1"
    assert web.get("/metrics", headers=OPERATOR).text == "up 1\n"
    assert web.get("/v1/signing/requests", headers=SIGNER).json() == []
    assert web.get("/v1/status", headers=SIGNER).status_code == 403
    assert web.get("/v1/signing/requests", headers=OPERATOR).status_code == 403


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_told_in_its_own_sentence(web: Web, name: str) -> None:
    error, status = ERRORS[name]
    got = web.get(f"/v1/fail/{name}", headers=OPERATOR)
    assert (got.status_code, got.json()) == (status, {"error": str(error)})


@pytest.mark.parametrize("error", [OverflowError("int too large"), DataError("INSERT", None, ValueError("NUL"))])
def test_a_value_that_the_database_cannot_hold_is_the_callers(
    web: Web, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ERRORS, "unfit", (error, 422))
    got = web.get("/v1/fail/unfit", headers=OPERATOR)
    assert (got.status_code, "too long" in got.json()["error"]) == (422, True)


def test_an_error_that_nobody_foresaw_tells_nothing_of_the_inside(web: Web) -> None:
    got = web.get("/v1/fail/unforeseen", headers=OPERATOR)
    assert got.status_code == 500
    assert "secret" not in got.text


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"a": 1}', b'{"a": 1, "b": 2, "c": 3}', b'{"a": "x", "b": 2}'])
def test_a_body_that_does_not_fit_is_refused_with_the_place(web: Web, body: bytes) -> None:
    got = web.post("/v1/sum", content=body, headers={**OPERATOR, "Content-Type": "application/json"})
    assert got.status_code == 422
    assert got.json()["error"].startswith("body")


def test_a_route_that_is_not_there_is_named(web: Web) -> None:
    assert web.get("/v1/nowhere", headers=OPERATOR).json() == {"error": "no such route: GET /v1/nowhere"}
    assert web.request("DELETE", "/v1/status", headers=OPERATOR).status_code == 405


def test_a_body_over_the_limit_is_cut_off(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "BODY_BYTES", 100)
    monkeypatch.setattr(limits, "ARTIFACT_BYTES", 1000)
    declared = web.post("/v1/sum", content=b"x" * 101, headers=OPERATOR)
    streamed = web.post("/v1/blobs", content=stream([b"x" * 600] * 2), headers=OPERATOR)
    assert (declared.status_code, streamed.status_code) == (413, 413)
    assert "limit of 1000 bytes" in streamed.json()["error"]
    assert web.post("/v1/blobs", content=stream([b"x" * 500] * 2), headers=OPERATOR).json() == {"size": 1000}


def test_tokens_that_are_missing_or_empty_stop_the_start(tmp_path_factory: pytest.TempPathFactory) -> None:
    state = tmp_path_factory.mktemp("state")
    with pytest.raises(SetupError, match="operator"):
        api.Tokens.load(state)
    (state / "tokens").mkdir()
    (state / "tokens" / "operator").write_text("a\n")
    (state / "tokens" / "signer").write_text("\n")
    with pytest.raises(SetupError, match="open to others"):
        api.Tokens.load(state)
    for path in (state / "tokens").iterdir():
        path.chmod(0o600)
    with pytest.raises(SetupError, match="empty"):
        api.Tokens.load(state)
