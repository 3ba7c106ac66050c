"""Metadata page by page over MQTT and whole over HTTPS, and no more of it than was asked for."""

import hashlib
import random
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tuf.api.metadata import TargetFile, Targets

from contract import codec, limits, signatures
from contract.messages import MetadataReply, MetadataRequest, Up
from coordinator import pki
from coordinator.signing import repository as tuf
from edge_agent import metadata, trust
from edge_agent.errors import TrustError, UnavailableError
from tests.fakes.agent_parts import FakeLink
from tests.fakes.agent_repository import Repository

PAGE = limits.METADATA_PAGE_BYTES


class Source:
    """Answers from `files`; `twist` may change an answer, `lost` requests get none."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.lost = 0
        self.size: int | None = None
        self.raw = False
        self.page = PAGE
        self.link = FakeLink(self.answer)
        self.stopping = threading.Event()
        self.pages = metadata.Pages(self.link, retry_s=0.05, patience_s=0.6, stopping=self.stopping)

    def answer(self, message: Up) -> None:
        assert isinstance(message, MetadataRequest)
        if self.lost:
            self.lost -= 1
            return
        file = self.files.get(message.name)
        whole = codec.deflate(file) if file is not None and not self.raw else file
        content = whole[message.offset :][: self.page] if whole is not None else None
        size = len(whole or b"") if self.size is None else self.size
        reply = MetadataReply(name=message.name, content=content, offset=message.offset, size=size)
        self.pages.accept(MetadataReply(name="unasked.json", content=b"", offset=0, size=0))
        for _ in range(2):  # QoS 1 may give it twice
            self.pages.accept(reply)


@pytest.mark.parametrize("size", [1, PAGE - 1, PAGE, PAGE + 1, 5 * PAGE, limits.METADATA_BYTES])
def test_a_file_of_any_size_comes_whole_though_answers_get_lost(size: int) -> None:
    content = random.Random(size).randbytes(size)  # which packing cannot make smaller
    source = Source({"2.bundles.json": content})
    source.lost = 2
    assert source.pages.fetch("2.bundles.json", limits.METADATA_BYTES) == content


def test_a_file_that_the_repository_lacks_is_none() -> None:
    assert Source({}).pages.fetch("2.root.json", 100) is None


def test_a_file_over_the_limit_is_refused_at_its_first_page() -> None:
    source = Source({"timestamp.json": random.Random(1).randbytes(10 * PAGE)})
    with pytest.raises(TrustError, match=r"timestamp\.json has more than 16384 bytes"):
        source.pages.fetch("timestamp.json", limits.TIMESTAMP_BYTES)
    assert len(source.link.sent) == 1


def test_a_size_that_is_not_the_contents_is_no_way_around_the_limit() -> None:
    source = Source({"timestamp.json": random.Random(1).randbytes(5000)})
    source.size = 10
    with pytest.raises((TrustError, UnavailableError)):
        source.pages.fetch("timestamp.json", 500)


@pytest.mark.parametrize("page", [0, 1, PAGE - 1])
def test_pages_without_end_are_given_up_at_the_first(page: int) -> None:
    source = Source({"2.bundles.json": random.Random(1).randbytes(3 * PAGE)})
    source.page = page
    with pytest.raises(UnavailableError, match="do not fit together"):
        source.pages.fetch("2.bundles.json", limits.METADATA_BYTES)
    assert len(source.link.sent) == 1


def test_a_small_answer_that_unpacks_to_endless_data_is_cut_off() -> None:
    source = Source({"timestamp.json": b"[" * 100_000_000})
    with pytest.raises(TrustError, match="more than 16384 bytes"):
        source.pages.fetch("timestamp.json", limits.TIMESTAMP_BYTES)


def test_an_answer_that_cannot_be_unpacked_is_asked_for_again() -> None:
    source = Source({"timestamp.json": b"{}"})
    source.raw = True
    with pytest.raises(UnavailableError, match="cannot be unpacked"):
        source.pages.fetch("timestamp.json", limits.TIMESTAMP_BYTES)


def test_silence_is_given_up() -> None:
    source = Source({})
    source.lost = 1000
    with pytest.raises(UnavailableError, match=r"1\.root\.json"):
        source.pages.fetch("1.root.json", 100)
    source.stopping.set()
    with pytest.raises(UnavailableError):
        source.pages.fetch("1.root.json", 100)


class Web:
    """An HTTPS server that gives `content` for every name, or pours out `endless` data, or says `status`."""

    def __init__(self, state: Path) -> None:
        pki.create(state)
        self.ca = state / "pki" / "ca.crt"
        self.status, self.content = 200, codec.deflate(b"0123456789")
        self.asked: list[tuple[str, str]] = []
        web = self

        class Route(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append((self.path, self.headers["Authorization"]))
                self.send_response(web.status)
                self.end_headers()  # no length: it ends when it ends
                try:
                    self.wfile.write(web.content)
                    while web.endless:
                        self.wfile.write(bytes(65536))
                except OSError:
                    web.endless = False  # the other side hung up

            def log_message(self, *_: object) -> None:
                pass

        self.endless = False
        self.server = HTTPServer(("127.0.0.1", 0), Route)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(state / "pki" / "api.crt", state / "pki" / "api.key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = Web(tmp_path)
    yield made
    made.stop()


def test_metadata_comes_over_https_with_the_devices_token(web: Web) -> None:
    tokens, now = iter(["a.b", "c.d"]), [0.0]
    fetch = metadata.over_https(web.url, web.ca, lambda: next(tokens), clock=lambda: now[0])
    for now[0] in (0.0, 59.0, 61.0):
        assert fetch("2.root.json", 100) == b"0123456789"
    told = [f"{signatures.SCHEME} {token}" for token in ("a.b", "a.b", "c.d")]
    assert web.asked == [("/v1/tuf/2.root.json", header) for header in told]
    web.status = 404
    assert fetch("3.root.json", 100) is None
    web.status = 403
    with pytest.raises(UnavailableError, match="403"):
        fetch("3.root.json", 100)


def test_endless_data_over_https_is_cut_off(web: Web) -> None:
    web.endless = True
    with pytest.raises(TrustError, match="more than 16384 bytes"):
        metadata.over_https(web.url, web.ca, lambda: "a.b")("timestamp.json", limits.TIMESTAMP_BYTES)


def test_a_server_of_another_authority_gets_no_token(web: Web, tmp_path: Path) -> None:
    pki.create(tmp_path / "other")
    with pytest.raises(UnavailableError, match="cannot reach"):
        metadata.over_https(web.url, tmp_path / "other" / "pki" / "ca.crt", lambda: "a.b")("timestamp.json", 100)
    assert web.asked == []


def test_a_repository_of_1500_bundles_is_looked_up_over_mqtt(tmp_path: Path) -> None:
    repository = Repository()
    bundles = tuf.read(repository.newest("bundles"), Targets)
    for version in range(1, 1501):
        digest = hashlib.sha256(str(version).encode()).hexdigest()
        path = f"bundles/fashion-mnist/{version}/int8-{digest[:12]}.zip"
        needs = {"hardware_classes": ["x86-64", "aarch64"], "min_runtime_version": "ai-edge-litert 2.3.0"}
        custom = {"model": "fashion-mnist", "version": version, "variant": "int8", "blocks": digest, **needs}
        bundles.targets[path] = TargetFile(version, {"sha256": digest}, path, {"custom": custom})
    repository.put("bundles", tuf._next(bundles, repository.keys["bundles"][0], repository.now))
    repository.publish()
    repository.add("bundles/fashion-mnist/1501/int8-0123456789ab.zip", b"one more")
    assert 400_000 < len(repository.newest("bundles")) < limits.METADATA_BYTES / 2
    source = Source(repository.files)
    target = trust.lookup(repository.bootstrap, tmp_path, path, source.pages.fetch)
    assert (target.size, target.sha256, target.blocks) == (1500, digest, digest)
    assert len(source.link.sent) == 5  # each file in one page, packed
