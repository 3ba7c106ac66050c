"""The local API over its real sockets: what apps get, and what they cannot do."""

import contextlib
import errno
import http.client
import itertools
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import ContractError
from edge_agent import api_server
from edge_agent import client as client_module
from edge_agent.api import Answer
from edge_agent.client import Client, ClientError
from edge_agent.errors import UnavailableError
from edge_agent.serving import Model, Serving
from edge_agent.sources.payload import PayloadOptions
from edge_agent.sources.push import Pushes
from tests.fakes import agent_bundles, agent_models, triton_client
from tests.fakes.agent_api import model, served
from tests.fakes.broker_process import eventually, free_port


@pytest.fixture
def serving() -> Serving:
    made = Serving()
    made.swap("thirds", model(agent_bundles.make()))
    return made


@pytest.fixture
def client(tmp_path: Path, serving: Serving) -> Iterator[Client]:
    with served(tmp_path, serving), Client(socket=tmp_path / "api.sock", retries=0) as made:
        yield made


def raw(folder: Path, content: bytes, *, end: bool = False) -> bytes:
    """Everything that comes back for these bytes until the server closes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(folder / "api.sock"))
        connection.sendall(content)
        if end:
            connection.shutdown(socket.SHUT_WR)
        got = b""
        while more := connection.recv(65536):
            got += more
        return got


def post(body: bytes | str, *headers: str, path: str = "/v2/models/thirds/infer") -> bytes:
    content = body.encode() if isinstance(body, str) else body
    lines = [f"POST {path} HTTP/1.1", f"Content-Length: {len(content)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + content


def large_request(samples: int) -> bytes:
    """An inference of so many samples, answered in JSON."""
    x = agent_models.samples(samples, seed=0)[0]
    tensor = {"name": "x", "shape": x.shape, "datatype": "UINT8", "parameters": {"binary_data_size": x.nbytes}}
    header = json.dumps({"inputs": [tensor]}).encode()
    return post(header + x.tobytes(), f"Inference-Header-Content-Length: {len(header)}")


@pytest.mark.parametrize("binary", [True, False])
def test_an_app_gets_what_the_model_says_and_each_inference_is_counted(tmp_path: Path, binary: bool) -> None:
    serving, counted = Serving(), []
    serving.swap("thirds", one := model(agent_bundles.make(version=7)))
    x, _ = agent_models.samples(5, seed=0)
    expected = one.infer(x).probabilities
    with (
        served(tmp_path, serving, record=lambda _model, rows: counted.append(rows)),
        Client(socket=tmp_path / "api.sock") as client,
    ):
        result = client.infer("thirds", x, outputs=["logits", "class"], binary=binary)
        np.testing.assert_array_equal(result.probabilities, expected)
        np.testing.assert_array_equal(result.outputs["class"], expected.argmax(axis=1))
        np.testing.assert_allclose(result.outputs["logits"], one.logits(x))
        assert result.labels == [("low", "middle", "high")[i] for i in expected.argmax(axis=1)]
        assert (result.model, result.version, result.served_by) == ("thirds", "7", "device")
        assert result.parameters == {"variant": "float", "bundle_sha256": one.ref.sha256}
        client.infer("thirds", x[:1], binary=binary)
        assert client.metadata("thirds")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4, 4, 1]}]
        assert client.models() == [{"name": "thirds", "version": "7", "state": "READY", "reason": ""}]
        assert client.ready()
        assert client.ready("thirds")
        assert not client.ready("other")
    assert counted == [5, 1]


def test_what_an_app_sends_wrong_is_a_sentence_and_the_next_request_is_served(client: Client) -> None:
    x, _ = agent_models.samples(3, seed=0)
    broken = x.astype(np.float32)
    broken[1, 0] = np.nan
    for bad, says in [
        (x[:, :2], r"expected samples of shape \(4, 4, 1\), got \(2, 4, 1\)"),
        (np.float32(1.0), "expected samples of shape"),
        (broken, "sample 1 is not finite"),
        (np.full((1, 4, 4, 1), np.inf, np.float64), "sample 0 is not finite"),
        (x[:0], "positive sizes"),
    ]:
        with pytest.raises(ClientError, match=says) as refused:
            client.infer("thirds", bad)
        assert refused.value.status == 400
    with pytest.raises(ClientError, match="outputs are class, label, logits, probabilities; asked for"):
        client.infer("thirds", x, outputs=["embedding"])
    assert len(client.infer("thirds", x).labels) == 3


def test_ten_megabytes_are_refused_before_they_are_read_and_the_app_learns_why(client: Client) -> None:
    with pytest.raises(ClientError, match="the limit is 4194304; send fewer samples") as refused:
        client.infer("thirds", np.zeros((10_000_000 // 16, 4, 4, 1), np.uint8))
    assert refused.value.status == 413
    assert len(client.infer("thirds", agent_models.samples(3, seed=0)[0]).labels) == 3


def test_so_many_small_samples_that_their_answer_would_fill_the_memory_are_refused(client: Client) -> None:
    most = 256 * 1024 // 3
    with pytest.raises(ClientError, match=f"{most + 1} samples at a time; this model takes {most}: send") as refused:
        client.infer("thirds", np.zeros((most + 1, 4, 4, 1), np.uint8))
    assert refused.value.status == 413
    assert len(client.infer("thirds", np.zeros((2, 4, 4, 1), np.uint8)).labels) == 2


def test_what_is_not_there_is_404_and_what_cannot_serve_now_is_503(client: Client, serving: Serving) -> None:
    x, _ = agent_models.samples(1, seed=0)
    with pytest.raises(ClientError, match="no model 'digits' on this device; it has thirds") as missing:
        client.infer("digits", x)
    assert missing.value.status == 404
    status, answer, _ = client._once("POST", "/v2/models/thirds/versions/9/infer", b"{}", {})
    assert status == 400
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 4, 4, 1], "datatype": "UINT8", "data": x.tolist()}]})
    status, answer, _ = client._once("POST", "/v2/models/thirds/versions/9/infer", body.encode(), {})
    assert (status, json.loads(answer)["error"][:40]) == (404, "version 1 of 'thirds' serves here, not '")
    assert client._once("POST", "/v2/models/thirds/versions/1/infer", body.encode(), {})[0] == 200
    assert client._once("GET", "/v2/models/thirds/versions/1/ready", b"", {})[0] == 200
    assert client._once("GET", "/v2/models/thirds/versions/2/ready", b"", {})[0] == 404
    for method, path in [("GET", "/"), ("GET", "/v2/models/thirds/infer"), ("POST", "/v2"), ("GET", "/v2/../etc")]:
        assert client._once(method, path, b"{}" if method == "POST" else b"", {})[0] == 404
    serving.swap("thirds", None)
    status, answer, headers = client._once("POST", "/v2/models/thirds/infer", body.encode(), {})
    assert (status, headers["Retry-After"]) == (503, "5")
    assert "no model serves on this device yet; a rollout brings one" in json.loads(answer)["error"]
    assert client._once("GET", "/v2/health/ready", b"", {})[0] == 503
    assert client._once("GET", "/v2/models/thirds/ready", b"", {})[0] == 503
    assert client._once("GET", "/v2/health/live", b"", {})[0] == 200


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v2 HTTP/9.9\r\n\r\n", 505),
        (b"BREW /v2 HTTP/1.1\r\n\r\n", 501),
        (b"POST /v2/models/thirds/infer HTTP/1.1\r\n\r\n", 411),
        (b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 411),
        (b"POST /v2 HTTP/1.1\r\nContent-Length: 2\r\nContent-Encoding: gzip\r\n\r\nab", 411),
        (b"POST /v2 HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"POST /v2 HTTP/1.1\r\nContent-Length: -2\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nContent-Length: " + b"9" * 300 + b"\r\n\r\n", 413),
        (b"POST /v2 HTTP/1.1\r\nContent-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n", 413),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (post("{}", "Inference-Header-Content-Length: many"), 400),
        (post("{}", "Inference-Header-Content-Length: 3"), 400),
        (post('{"inputs": []}'), 400),
        (post('{"inputs": [{"name": "y", "shape": [1], "datatype": "INT8", "data": [1]}]}'), 400),
    ],
)
def test_broken_http_gets_an_answer_in_the_protocols_words(
    client: Client, tmp_path: Path, content: bytes, status: int
) -> None:
    got = raw(tmp_path, content)
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), got
    assert list(json.loads(body)) == ["error"]
    assert client.ready()


def test_a_body_that_is_cut_off_and_requests_that_come_at_once(client: Client, tmp_path: Path) -> None:
    assert b"the body ended after 2 of 9 bytes" in raw(tmp_path, post(b"{}").replace(b": 2", b": 9"), end=True)
    two = b"GET /v2/health/live HTTP/1.1\r\n\r\n" * 2
    assert raw(tmp_path, two, end=True).count(b'{"live":true}') == 2
    assert raw(tmp_path, b"", end=True) == b""
    early = post("{}", "Expect: 100-continue")
    assert raw(tmp_path, early).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400 ")


def test_who_sends_byte_by_byte_is_cut_off_in_time(tmp_path: Path, serving: Serving) -> None:
    with served(tmp_path, serving, request_s=0.5), socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(tmp_path / "api.sock"))
        slow.settimeout(60)
        for _ in range(200):
            try:
                slow.sendall(b"G")
            except OSError:
                break
            time.sleep(0.02)
        else:
            pytest.fail("still connected after 4 s")
        with Client(socket=tmp_path / "api.sock") as other:
            assert other.ready()


def test_an_app_that_asks_too_often_is_told_when_to_come_back(tmp_path: Path, serving: Serving) -> None:
    x, _ = agent_models.samples(1, seed=0)
    section = {"rate_per_s": 2.0, "burst": 2}
    with served(tmp_path, serving, section=section), Client(socket=tmp_path / "api.sock", retries=0) as client:
        client.infer("thirds", x)
        client.infer("thirds", x)
        with pytest.raises(ClientError, match="too many requests; wait 1 s") as refused:
            client.infer("thirds", x)
        assert refused.value.status == 429
        assert client.ready()
        with Client(socket=tmp_path / "api.sock", retries=3) as patient:
            assert patient.infer("thirds", x).labels


def test_one_app_cannot_take_all_connections(tmp_path: Path, serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_server, "_CONNECTIONS_PER_APP", 3)
    with served(tmp_path, serving):
        held = [Client(socket=tmp_path / "api.sock") for _ in range(3)]
        assert all(eventually(client.ready, 30) for client in held)
        with Client(socket=tmp_path / "api.sock", retries=0) as another:
            with pytest.raises(ClientError, match="too many connections"):
                another.models()
            held[0].close()
            assert eventually(another.ready)
        for client in held:
            client.close()


def test_a_machine_that_gives_no_more_threads_turns_apps_away_and_serves_them_later(
    tmp_path: Path, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with served(tmp_path, serving) as server, Client(socket=tmp_path / "api.sock", retries=0) as client:
        with monkeypatch.context() as exhausted:
            exhausted.setattr(api_server.threading.Thread, "start", start)
            with pytest.raises(ClientError, match="too many connections"):
                client.models()
        assert client.models()
        assert eventually(lambda: len(server._connections) == 1, 30)


def test_a_web_page_in_a_browser_on_the_device_is_refused_and_a_program_is_not(
    tmp_path: Path, serving: Serving
) -> None:
    port = free_port()
    with served(tmp_path, serving, section={"http_port": port}):
        with Client(url=f"http://127.0.0.1:{port}") as client:
            assert client.infer("thirds", agent_models.samples(2, seed=0)[0]).version == "1"
        for headers in (
            {"Host": f"attacker.example:{port}"},
            {"Host": f"127.0.0.1:{port}", "Origin": "http://attacker.example"},
            {"Host": ""},
        ):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/v2", headers=headers)
            assert connection.getresponse().status == 403
            connection.close()


def test_an_app_is_the_user_that_the_kernel_names(tmp_path: Path) -> None:
    with api_server._unix(tmp_path / "s") as listener, socket.socket(socket.AF_UNIX) as app:
        app.connect(str(tmp_path / "s"))
        accepted, address = listener.accept()
        with accepted:
            assert api_server._app(accepted, address) == f"uid {os.geteuid()}"
    with api_server._loopback(free_port()) as listener, socket.create_connection(listener.getsockname()):
        accepted, address = listener.accept()
        with accepted:
            assert api_server._app(accepted, address) == f"uid {os.geteuid()}"


def test_the_socket_is_for_owner_and_group_and_takes_the_place_of_one_that_was_left(tmp_path: Path) -> None:
    deep = tmp_path / ("long-" * 20) / ("folder-" * 10)
    deep.mkdir(parents=True)
    for _ in range(2):
        api_server._unix(deep / "api.sock").close()
        assert stat.S_IMODE((deep / "api.sock").stat().st_mode) == 0o660
    serving = Serving()
    with served(deep, serving), Client(socket=deep / "api.sock") as client:
        assert client.models() == []
    assert not (deep / "api.sock").exists()


def test_a_place_where_nobody_can_listen_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UnavailableError, match="is there and no socket"):
        api_server._unix(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(UnavailableError, match="cannot listen there: No such file"):
        api_server._unix(tmp_path / "none" / "api.sock")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}: the local API cannot listen"):
            api_server._loopback(port)


def test_a_client_without_an_agent_says_so(tmp_path: Path) -> None:
    with Client(socket=tmp_path / "api.sock") as client:
        assert not client.ready()
        with pytest.raises(ClientError, match="does the agent run"):
            client.models()
    with pytest.raises(ValueError, match="and not both"):
        Client()


def test_bundles_are_swapped_under_load_and_no_request_fails_or_mixes_two(tmp_path: Path) -> None:
    """Every answer's probabilities are those of the version that it names."""
    x, _ = agent_models.samples(4, seed=0)
    versions = [model(agent_bundles.make(version=n, temperature=float(n))) for n in range(1, 5)]
    expected = {str(one.ref.version): one.infer(x).probabilities for one in versions}
    assert len({one.tobytes() for one in expected.values()}) == 4
    serving, recorded, lock = Serving(), [], threading.Lock()
    serving.swap("thirds", versions[0])
    seen: list[tuple[str, np.ndarray]] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def record(_model: Model, rows: int) -> None:
        with lock:
            recorded.append(rows)

    def hammer(binary: bool) -> None:
        try:
            with Client(socket=tmp_path / "api.sock", retries=0, timeout_s=120) as client:
                for count in itertools.cycle((len(x), 1)):
                    if done.is_set():
                        break
                    result = client.infer("thirds", x[:count], binary=binary)
                    seen.append((result.version, result.probabilities))
        except BaseException as error:  # noqa: BLE001  # shown below
            failures.append(error)

    with served(tmp_path, serving, record=record):
        threads = [threading.Thread(target=hammer, args=(index % 2 == 0,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for index in range(20):
            before = len(seen)
            serving.swap("thirds", versions[index % 4])
            assert eventually(lambda before=before: len(seen) >= before + 8 or failures, 60)
        done.set()
        for thread in threads:
            thread.join(120)
    assert not failures
    assert {version for version, _ in seen} == set(expected)
    for version, probabilities in seen:
        np.testing.assert_array_equal(probabilities, expected[version][: len(probabilities)])
    assert sum(recorded) == sum(len(probabilities) for _, probabilities in seen)


def test_a_failure_of_ours_is_an_answer_without_its_inside(
    tmp_path: Path, serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    def record(_model: Model, _rows: int) -> None:
        raise ZeroDivisionError("secret")

    with served(tmp_path, serving, record=record), Client(socket=tmp_path / "api.sock", retries=0) as client:
        with pytest.raises(ClientError, match="the agent failed unexpectedly; its log says how") as failed:
            client.infer("thirds", agent_models.samples(1, seed=0)[0])
        assert failed.value.status == 500
        assert client.ready()
    assert "secret" in caplog.text


def test_stopping_does_not_wait_for_apps_that_only_hold_a_connection(tmp_path: Path, serving: Serving) -> None:
    with served(tmp_path, serving) as server:
        held = Client(socket=tmp_path / "api.sock")
        assert held.ready()
    assert not server._connections
    assert not held.ready()
    held.close()


def test_a_model_whose_output_is_not_finite_is_503_and_not_a_number_that_is_none(
    client: Client, serving: Serving
) -> None:
    one: Any = serving.get("thirds")
    run, x = one._runtime.run, agent_models.samples(2, seed=0)[0]
    one._steps._run = one._runtime.run = lambda values: np.full_like(run(values), np.nan)
    one._runtime.logits = lambda values: np.full((len(values), 3), np.nan, np.float32)
    for several in (x[:1], x):
        with pytest.raises(ClientError, match="is not finite") as refused:
            client.infer("thirds", several)
        assert refused.value.status == 503


def test_model_check_is_what_infer_would_say(serving: Serving) -> None:
    one = serving.get("thirds")
    assert one is not None
    one.check(agent_models.samples(3, seed=0)[0])
    with pytest.raises(ContractError):
        one.check(np.zeros((3, 4), np.float32))


def test_what_is_pushed_is_queued_and_a_full_queue_says_so(tmp_path: Path, serving: Serving) -> None:
    pushes = Pushes()
    with (
        served(tmp_path, serving, push=pushes.offer),
        pushes.opened("cam", 1, PayloadOptions()) as waiting,
        Client(socket=tmp_path / "api.sock") as client,
    ):
        for path, body, status in [
            ("/v2/sources/cam", b"[1, 2]", 202),
            ("/v2/sources/cam", b"[1, 2]", 503),
            ("/v2/sources/mic", b"[1, 2]", 404),
            ("/v2/sources/cam", b"nonsense", 400),
        ]:
            assert client._once("POST", path, body, {})[0] == status
        assert waiting.get()[0].tolist() == [1, 2]


def test_labelled_samples_are_checked_before_they_are_kept(tmp_path: Path, serving: Serving) -> None:
    kept: list[tuple[str, np.ndarray, np.ndarray]] = []
    x, y = agent_models.samples(6, seed=0)
    with (
        served(tmp_path, serving, add_samples=lambda *added: kept.append(added)),
        Client(socket=tmp_path / "api.sock", retries=0) as client,
    ):
        assert client.add_samples("thirds", x, y.astype(np.uint8)) == 6
        for bad_x, bad_y, says in [
            (x[:, :2], y, "expected samples of shape"),
            (np.full((2, 4, 4, 1), np.nan, np.float32), y[:2], "not finite"),
            (x, y[:5], r"expected integers of shape \[6\]"),
            (x, y.astype(np.float32), "expected integers"),
            (x, y + 1, "a label is outside 0 to 2"),
            (x, y - 1, "a label is outside 0 to 2"),
        ]:
            with pytest.raises(ClientError, match=says) as refused:
                client.add_samples("thirds", bad_x, bad_y)
            assert refused.value.status == 400
        with pytest.raises(ClientError, match="no model 'other'"):
            client.add_samples("other", x, y)
    ((name, kept_x, kept_y),) = kept
    assert (name, kept_x.dtype, kept_y.dtype) == ("thirds", x.dtype, np.int64)
    np.testing.assert_array_equal(kept_x, x)
    np.testing.assert_array_equal(kept_y, y)


def test_a_device_that_keeps_no_samples_or_whose_disk_is_full_says_so(tmp_path: Path, serving: Serving) -> None:
    x, y = agent_models.samples(1, seed=0)

    def full(*_added: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with served(tmp_path, serving), Client(socket=tmp_path / "api.sock", retries=0) as client:
        with pytest.raises(ClientError, match="this device keeps no samples") as refused:
            client.add_samples("thirds", x, y)
        assert refused.value.status == 501
    with served(tmp_path, serving, add_samples=full), Client(socket=tmp_path / "api.sock", retries=0) as client:
        with pytest.raises(ClientError, match="No space left on device") as refused:
            client.add_samples("thirds", x, y)
        assert refused.value.status == 507


def test_what_nvidias_client_sends_is_answered(tmp_path: Path, serving: Serving) -> None:
    """Its recorded bytes (tests/fakes/triton_client.py); it understood these answers when they were recorded."""
    port = free_port()
    answers = []
    with (
        served(tmp_path, serving, section={"http_port": port}),
        socket.create_connection(("127.0.0.1", port), 60) as connection,
    ):
        connection.sendall(triton_client.GOLDEN.read_bytes())
        connection.shutdown(socket.SHUT_WR)
        stream = connection.makefile("rb")
        while status := stream.readline():
            headers = http.client.parse_headers(stream)
            body = stream.read(int(headers["Content-Length"]))
            length = headers["Inference-Header-Content-Length"]
            answers.append((int(status.split()[1]), body, None if length is None else int(length)))
        stream.close()
    assert [status for status, _, _ in answers] == [200, 200, 200, 404, 200, 200, 200, 200, 200, 200, 200, 400]
    for index in (8, 10):  # binary, then JSON
        _, body, length = answers[index]
        header, arrays = client_module._decode(body, None if length is None else str(length))
        assert (length is None) == (index == 10)
        assert (header["id"], header["model_version"]) == ("q7", "1")
        assert arrays["class"].tolist() == [0, 2]
        assert arrays["label"] == ["low", "high"]


def test_an_app_with_large_bodies_under_way_is_refused_another_until_one_is_through(
    tmp_path: Path, serving: Serving
) -> None:
    x = agent_models.samples(5000, seed=0)[0]
    with (
        served(tmp_path, serving, section={"max_body_bytes": 100_000}, request_s=300.0) as server,
        Client(socket=tmp_path / "api.sock", retries=0) as client,
        contextlib.ExitStack() as slow,
    ):
        for _ in range(2):
            held = slow.enter_context(socket.socket(socket.AF_UNIX))
            held.connect(str(tmp_path / "api.sock"))
            held.sendall(b"POST /v2/models/thirds/infer HTTP/1.1\r\nContent-Length: 100000\r\n\r\n{")
        assert eventually(lambda: server._held.total() == 200_000, 60)
        with pytest.raises(ClientError, match="too many large requests at once") as refused:
            client.infer("thirds", x)
        assert refused.value.status == 503
        assert len(client.infer("thirds", x[:10]).labels) == 10
        slow.close()
        assert eventually(lambda: server._held.total() == 0, 60)
        assert len(client.infer("thirds", x).labels) == 5000


def test_an_app_that_does_not_take_its_large_answers_keeps_no_more_of_them_in_memory_than_its_share(
    tmp_path: Path, serving: Serving
) -> None:
    request = large_request(60_000)
    with (
        served(tmp_path, serving, section={"max_body_bytes": len(request)}, request_s=300.0) as server,
        Client(socket=tmp_path / "api.sock", retries=0) as client,
        contextlib.ExitStack() as slow,
    ):
        readers = [slow.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2)]
        for reader in readers:
            reader.connect(str(tmp_path / "api.sock"))
            reader.sendall(request)
        for reader in readers:
            assert reader.recv(15) == b"HTTP/1.1 200 OK"  # the answer is there, and they take no more of it
        with pytest.raises(ClientError, match="too many large requests at once"):
            client.infer("thirds", agent_models.samples(60_000, seed=0)[0])
        slow.close()
        assert eventually(lambda: server._held.total() == 0, 60)


def test_who_takes_a_large_answer_byte_by_byte_is_cut_off_in_time(tmp_path: Path, serving: Serving) -> None:
    request = large_request(60_000)
    with served(tmp_path, serving, request_s=3.0) as server, socket.socket(socket.AF_UNIX) as reader:
        reader.connect(str(tmp_path / "api.sock"))
        reader.sendall(request)
        assert reader.recv(15) == b"HTTP/1.1 200 OK"
        taken, until = 0, time.monotonic() + 60
        while server._connections and time.monotonic() < until:
            taken += len(reader.recv(10_000))
            time.sleep(0.1)
        assert not server._connections
        assert taken < 1_500_000  # of some 4 MB


def test_a_slow_cloud_keeps_no_large_request_for_a_model_that_serves_here_waiting(
    tmp_path: Path, serving: Serving
) -> None:
    asked, answers = threading.Event(), threading.Event()

    def forward(_model: str, _body: bytes, _length: str | None) -> Answer:
        asked.set()
        assert answers.wait(60)
        return Answer(200, b"{}")

    x = agent_models.samples(10_000, seed=0)[0]
    with (
        served(tmp_path, serving, forward=forward),
        Client(socket=tmp_path / "api.sock", retries=0, timeout_s=20.0) as client,
        socket.socket(socket.AF_UNIX) as elsewhere,
    ):
        elsewhere.connect(str(tmp_path / "api.sock"))
        elsewhere.sendall(large_request(10_000).replace(b"/v2/models/thirds/", b"/v2/models/digits/"))
        try:
            assert asked.wait(60)
            assert len(client.infer("thirds", x).labels) == 10_000
        finally:
            answers.set()
        assert elsewhere.recv(15) == b"HTTP/1.1 200 OK"
