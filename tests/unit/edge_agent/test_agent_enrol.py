"""Enrolment against a real HTTPS server, and the command line around it."""

import base64
import json
import os
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgspec
import pytest

from contract import signatures
from coordinator import pki
from edge_agent import config, signing, status
from edge_agent.cli import main
from edge_agent.enrol import enrol
from edge_agent.errors import ConfigError, EnrolmentError

TOKEN = "one-time-token"


class Api:
    """The enrolment route, with a real certificate authority."""

    def __init__(self, state: Path) -> None:
        pki.create(state)
        self.ca = state / "pki" / "ca.crt"
        self.requests: list[dict[str, str]] = []
        self.authority = pki.Authority.load(state)
        self.device = "meter-1"
        api = self

        class Route(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status_code, answer = api.answer(self.path, request)
                content = json.dumps(answer).encode()
                self.send_response(status_code)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Route)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(state / "pki" / "api.crt", state / "pki" / "api.key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def answer(self, path: str, request: dict[str, str]) -> tuple[int, dict[str, object]]:
        self.requests.append(request)
        if path != "/v1/enrol" or request["token"] != TOKEN:
            return 403, {"error": "this enrolment token is unknown, used or expired; ask for a new one"}
        certificate = self.authority.sign_csr(request["csr"].encode(), self.device, days=1, now=datetime.now(UTC))
        return 201, {
            "device": self.device,
            "certificate": certificate.decode(),
            "ca": self.authority.ca_pem.decode(),
            "broker_host": "127.0.0.1",
            "broker_port": 8883,
            "root": base64.b64encode(b'{"signed": {}}').decode(),
        }

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    running = Api(tmp_path_factory.mktemp("api"))
    yield running
    running.stop()


def _enrol(api: Api, root: Path, **change: object) -> config.Config:
    options = {"device": "meter-1", "url": api.url, "ca": api.ca, "token": TOKEN, "hardware_class": "x86-64"}
    return enrol(root, **(options | change))  # type: ignore[arg-type]  # the options of one call


def test_enrolment_writes_a_folder_that_an_agent_can_run_from(api: Api, tmp_path: Path) -> None:
    made = _enrol(api, tmp_path / "agent")
    folder = config.Folder(tmp_path / "agent")
    assert config.load(folder) == made
    assert (made.device, made.broker_port, made.hardware_class) == ("meter-1", 8883, "x86-64")
    assert made.url == api.url
    assert folder.tuf_root.read_bytes() == b'{"signed": {}}'
    assert folder.source(made).is_dir()
    for secret in (folder.key, folder.enrolment):
        assert secret.stat().st_mode & 0o077 == 0
    signatures.verify(folder.certificate.read_bytes(), b"payload", signing.sign(folder.key, b"payload"))
    claim, *signed = signatures.read_token(signing.token(folder, "blobs"))
    signatures.verify(folder.certificate.read_bytes(), *signed)
    assert (claim.device, claim.audience) == ("meter-1", "blobs")
    assert 0 < claim.not_after - time.time() <= signing.TOKEN_S
    assert "PRIVATE" not in json.dumps(api.requests)
    assert TOKEN not in "".join(path.read_text() for path in folder.root.rglob("*") if path.is_file())
    with pytest.raises(ConfigError, match="enrolled already"):
        _enrol(api, tmp_path / "agent")


def test_a_refusal_is_told_in_the_coordinators_words_and_a_second_try_uses_the_same_key(
    api: Api, tmp_path: Path
) -> None:
    with pytest.raises(EnrolmentError, match=r"refused \(403\): this enrolment token is unknown"):
        _enrol(api, tmp_path, token="wrong")
    key = config.Folder(tmp_path).key.read_bytes()
    _enrol(api, tmp_path)
    assert config.Folder(tmp_path).key.read_bytes() == key


def test_a_server_of_another_authority_is_not_given_the_token(api: Api, tmp_path: Path) -> None:
    pki.create(tmp_path / "other")
    before = len(api.requests)
    with pytest.raises(EnrolmentError, match="cannot reach the coordinator"):
        _enrol(api, tmp_path / "agent", ca=tmp_path / "other" / "pki" / "ca.crt")
    assert len(api.requests) == before


def test_a_certificate_for_somebody_else_is_not_taken(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = _enrol(api, tmp_path / "first")
    stolen = config.Folder(tmp_path / "first").certificate.read_text()
    assert other.device == "meter-1"
    honest = api.answer
    monkeypatch.setattr(api, "answer", lambda path, request: (201, honest(path, request)[1] | {"certificate": stolen}))
    with pytest.raises(EnrolmentError, match="not for this device's key"):
        _enrol(api, tmp_path / "second")
    assert not config.Folder(tmp_path / "second").config.exists()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"device": "Meter 1"}, ConfigError),
        ({"device": "coordinator"}, ConfigError),
        ({"url": "http://127.0.0.1:1"}, ConfigError),
        ({"url": "https://127.0.0.1:port"}, ConfigError),
        ({"url": "https://[::1"}, ConfigError),
        ({"url": "https://127.0.0.1:1"}, EnrolmentError),
        ({"ca": Path("/nowhere/ca.crt")}, ConfigError),
    ],
)
def test_options_that_cannot_work_get_a_sentence(
    api: Api, tmp_path: Path, change: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        _enrol(api, tmp_path / "agent", **change)


@pytest.mark.parametrize("content", [b"", b"no key", b"\xff\x00"])
def test_a_key_that_cannot_be_read_gets_a_sentence(api: Api, tmp_path: Path, content: bytes) -> None:
    key = config.Folder(tmp_path).key
    key.parent.mkdir()
    key.write_bytes(content)
    with pytest.raises(ConfigError, match=r"device\.key cannot be read as a key"):
        _enrol(api, tmp_path)


def test_a_token_file_that_is_no_text_is_an_unknown_token(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xfe\x00")
    command = ["enrol", "--state", str(tmp_path / "agent"), "--device", "meter-1", "--url", api.url]
    assert main([*command, "--ca", str(api.ca), "--token-file", str(tmp_path / "token")]) == 1
    assert "refused (403)" in capsys.readouterr().err


def test_the_command_enrols_and_status_speaks_before_the_first_run(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path / "agent")
    command = ["enrol", "--state", root, "--device", "meter-1", "--url", api.url, "--ca", str(api.ca), "--json"]
    monkeypatch.delenv("FIELDFARE_TOKEN", raising=False)
    assert main(command) == 1
    assert "no token" in capsys.readouterr().err
    monkeypatch.setitem(os.environ, "FIELDFARE_TOKEN", TOKEN)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == {"device": "meter-1", "broker": "127.0.0.1:8883"}
    assert main(["status", "--state", root, "--json"]) == 0
    told = msgspec.json.decode(capsys.readouterr().out, type=status.Status)
    assert (told.device, told.running, told.models, told.pending_reports) == ("meter-1", False, {}, 0)
    assert main(["status", "--state", root]) == 0
    assert "serves           nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("device = 3", "device"),
        ("not toml", "agent.toml"),
        ('device = "a"\nbroker_host = "h"\nbroker_port = 1\ncolour = "red"', "colour"),
        ('device = "a"\nbroker_host = "h"\nbroker_port = 1\nhello_s = 0.0', "hello_s must be greater than 0"),
        ('device = "a"\nbroker_host = "h"\nbroker_port = 1\npoll_s = inf', "poll_s must be greater than 0 and finite"),
        (
            'device = "a"\nbroker_host = "h"\nbroker_port = 1\nretry_s = nan',
            "retry_s must be greater than 0 and finite",
        ),
        ('device = "a"\nbroker_host = "h"\nbroker_port = 0', "from 1 to 65535"),
        ('device = "Meter 1"\nbroker_host = "h"\nbroker_port = 1', "device name 'Meter 1'"),
    ],
)
def test_a_configuration_that_makes_no_sense_names_file_and_key(tmp_path: Path, content: str, message: str) -> None:
    folder = config.Folder(tmp_path)
    folder.config.write_text(content)
    with pytest.raises(ConfigError, match=message):
        config.load(folder)
