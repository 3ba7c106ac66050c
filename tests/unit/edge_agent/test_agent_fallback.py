"""The fallback: over verified TLS, with a token that only its owner reads, marked, bounded, and never by default."""

import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator import pki
from edge_agent.api import Api
from edge_agent.client import Client, ClientError
from edge_agent.errors import ApiError, RuntimeModelError, UnavailableError
from edge_agent.fallback import Cloud
from edge_agent.probation import Probations
from edge_agent.serving import Serving
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_api import model, served
from tests.fakes.agent_parts import Parts

X, _ = agent_models.samples(3, seed=0)


class CloudServing(ThreadingHTTPServer):
    """Cloud serving over TLS: the agent's own protocol code around a model of version 9."""

    daemon_threads = True

    def __init__(self, state: Path) -> None:
        pki.create(state)
        super().__init__(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(state / "pki" / "api.crt", state / "pki" / "api.key")
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.seen: list[tuple[str, str | None]] = []
        self.status = 200
        serving = Serving()
        serving.swap("thirds", model(agent_bundles.make(version=9)))
        self.api = Api(serving, record=lambda _model, _rows: None)

    def handle_error(self, *_: object) -> None:
        """A client that does not trust us leaves."""


class Handler(BaseHTTPRequestHandler):
    server: CloudServing

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        answer = self.server.api.answer(
            "POST", self.path.removeprefix("/serving"), body, self.headers.get("Inference-Header-Content-Length")
        )
        self.send_response(answer.status if self.server.status == 200 else self.server.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[CloudServing]:
    server = CloudServing(tmp_path / "cloud")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class Device:
    """A fallback to that cloud, on a clock that is set."""

    def __init__(self, tmp_path: Path, cloud: CloudServing, **changes: Any) -> None:
        self.now, self.events = 0.0, []
        self.token = tmp_path / "token"
        self.token.write_text("secret-token\n")
        self.token.chmod(0o600)
        fields = {
            "token_file": self.token,
            "ca": tmp_path / "cloud" / "pki" / "ca.crt",
            "event": self.events.append,
            "clock": lambda: self.now,
            **changes,
        }
        self.cloud = Cloud(f"https://127.0.0.1:{cloud.server_port}/serving/", **fields)


@pytest.mark.parametrize("binary", [True, False])
def test_what_cannot_serve_here_is_answered_by_the_cloud_and_says_so(
    tmp_path: Path, cloud: CloudServing, binary: bool
) -> None:
    device = Device(tmp_path, cloud)
    expected = model(agent_bundles.make(version=9)).infer(X).probabilities
    serving = Serving()
    with (
        served(tmp_path, serving, forward=device.cloud.forward),
        Client(socket=tmp_path / "api.sock", retries=0) as client,
    ):
        for _ in range(2):
            result = client.infer("thirds", X, binary=binary)
            assert (result.version, result.served_by) == ("9", "cloud")
            np.testing.assert_array_equal(result.probabilities, expected)
        with pytest.raises(ClientError, match="expected samples of shape") as refused:
            client.infer("thirds", X[:, :2], binary=binary)
        assert refused.value.status == 400
        assert cloud.seen == [("/serving/v2/models/thirds/infer", "Bearer secret-token")] * 3
        assert len(device.events) == 1
        assert "its requests, with raw samples, go to 127.0.0.1" in device.events[0]
        device.now += 3601
        client.infer("thirds", X)
        assert len(device.events) == 2
        serving.swap("thirds", model(agent_bundles.make(version=1)))
        here = client.infer("thirds", X, binary=binary)
        assert (here.version, here.served_by) == ("1", "device")
        assert len(cloud.seen) == 4


def test_a_model_that_fails_here_is_answered_by_the_cloud(tmp_path: Path, cloud: CloudServing) -> None:
    device = Device(tmp_path, cloud)
    serving = Serving()
    broken: Any = model(agent_bundles.make())
    broken._runtime.logits = lambda values: np.full((len(values), 3), np.nan, np.float32)
    serving.swap("thirds", broken)
    with (
        served(tmp_path, serving, forward=device.cloud.forward),
        Client(socket=tmp_path / "api.sock", retries=0) as client,
    ):
        assert client.infer("thirds", X).served_by == "cloud"


def test_a_cloud_that_fails_is_a_clear_503_and_is_left_alone_for_a_while(tmp_path: Path, cloud: CloudServing) -> None:
    device = Device(tmp_path, cloud)
    cloud.status = 500
    with (
        served(tmp_path, Serving(), forward=device.cloud.forward),
        Client(socket=tmp_path / "api.sock", retries=0) as client,
    ):
        with pytest.raises(
            ClientError, match=r"no model serves on this device yet.*and the cloud at .* status 500"
        ) as no:
            client.infer("thirds", X)
        assert no.value.status == 503
        with pytest.raises(ClientError, match="did not answer a moment ago"):
            client.infer("thirds", X)
        assert len(cloud.seen) == 1
        cloud.status, device.now = 200, 11.0
        assert client.infer("thirds", X).served_by == "cloud"


def test_what_one_app_asks_wrongly_does_not_keep_the_cloud_from_the_others(tmp_path: Path, cloud: CloudServing) -> None:
    device = Device(tmp_path, cloud)
    body = json.dumps(
        {"inputs": [{"name": "x", "shape": [1, 4, 4, 1], "datatype": "UINT8", "data": [0] * 16}]}
    ).encode()
    with pytest.raises(UnavailableError, match=r"the cloud at .* has no model 'digits'"):
        device.cloud.forward("digits", body, None)
    assert len(device.events) == 1  # the samples have left the device all the same
    for status in (413, 422):
        cloud.status = status
        assert device.cloud.forward("thirds", body, None).status == status
    cloud.status = 200
    with pytest.raises(ApiError, match="must be a number of bytes"):
        device.cloud.forward("thirds", body, "1\n2")
    assert device.cloud.forward("thirds", body, None).status == 200


def test_a_server_that_is_not_the_clouds_gets_neither_token_nor_sample(tmp_path: Path, cloud: CloudServing) -> None:
    pki.create(tmp_path / "other")
    device = Device(tmp_path, cloud, ca=tmp_path / "other" / "pki" / "ca.crt")
    with pytest.raises(UnavailableError, match="certificate verify failed"):
        device.cloud.forward("thirds", b"{}", None)
    assert not cloud.seen


def test_a_certificate_that_has_expired_gets_neither_token_nor_sample_whatever_the_devices_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = pki.create
    monkeypatch.setattr(pki, "create", lambda state: create(state, datetime(2020, 1, 1, tzinfo=UTC)))
    monkeypatch.setattr("edge_agent.identity.RELEASED", float("inf"))  # this clock is known to be wrong
    server = CloudServing(tmp_path / "cloud")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(UnavailableError, match="certificate has expired"):
            Device(tmp_path, server).cloud.forward("thirds", b"{}", None)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert not server.seen


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        ("secret", 0o640, "chmod 600"),
        ("", 0o600, "no bearer token"),
        ("a b", 0o600, "no bearer token"),
        (None, 0, "token"),
    ],
)
def test_a_token_that_cannot_be_used_is_said_and_nothing_is_sent(
    tmp_path: Path, cloud: CloudServing, content: str | None, mode: int, says: str
) -> None:
    device = Device(tmp_path, cloud)
    device.token.unlink()
    if content is not None:
        device.token.write_text(content)
        device.token.chmod(mode)
    with pytest.raises(UnavailableError, match=says) as refused:
        device.cloud.forward("thirds", b"{}", None)
    assert content != "secret" or "secret" not in str(refused.value)
    assert not cloud.seen


def test_an_answer_without_end_is_cut_off(tmp_path: Path, cloud: CloudServing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.fallback._ANSWER_BYTES", 10)
    with pytest.raises(UnavailableError, match="longer than 10 bytes"):
        Device(tmp_path, cloud).cloud.forward("thirds", json.dumps({"inputs": []}).encode(), None)


def test_a_model_that_fails_gives_way_to_the_slot_before_then_to_the_cloud_then_to_a_503(
    tmp_path: Path, cloud: CloudServing
) -> None:
    parts = Parts(tmp_path)
    for version in (1, 2):
        bundle = agent_bundles.make(version=version)
        parts.sign(bundle)
        parts.want(version, bundle)
        parts.settle()
    device = Device(tmp_path, cloud)
    probations = Probations(
        parts.config, state=parts.state, serving=parts.serving, switch=parts.switch, monotonic=lambda: parts.now
    )
    broken: Any = parts.serving.get("thirds")
    broken._steps._run = broken._runtime.run = _fail
    with (
        served(tmp_path, parts.serving, forward=device.cloud.forward),
        Client(socket=tmp_path / "api.sock", retries=0) as client,
    ):
        for count in range(25):
            assert not probations.tick() or count >= 20
            assert client.infer("thirds", X[:1]).served_by == ("cloud" if parts.served() == 2 else "device")
        assert parts.served() == 1
        assert (client.infer("thirds", X[:1]).version, parts.receipts()[-1].outcome) == ("1", "rolled-back")
        parts.serving.swap("thirds", None)
        assert client.infer("thirds", X[:1]).served_by == "cloud"
        cloud.status = 500
        with pytest.raises(ClientError) as refused:
            client.infer("thirds", X[:1])
        assert refused.value.status == 503
    parts.state.close()


def _fail(_values: np.ndarray) -> np.ndarray:
    raise RuntimeModelError("LiteRT cannot run the model: the delegate is gone")


def test_outputs_that_are_not_finite_may_be_an_apps_doing_and_take_no_model_away(tmp_path: Path) -> None:
    serving = Serving()
    serving.swap("thirds", one := model(agent_bundles.make()))
    one._steps._run = one._runtime.run = lambda _values: np.full((1, 3), np.nan, np.float32)  # type: ignore[method-assign]
    with served(tmp_path, serving), Client(socket=tmp_path / "api.sock", retries=0) as client:
        for _ in range(30):
            with pytest.raises(ClientError, match="not finite"):
                client.infer("thirds", X[:1])
    assert serving.broken.empty()
