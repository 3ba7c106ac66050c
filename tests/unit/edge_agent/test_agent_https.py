"""The HTTPS transport against a server that cuts, lies, redirects and dawdles."""

import errno
import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from contract import blocks, limits, signatures
from contract.messages import BlobRef
from coordinator import pki
from edge_agent.artifacts import Artifacts
from edge_agent.errors import GivenUpError, HeldError, RefusedError, UnavailableError
from edge_agent.https_transfer import Ranges
from edge_agent.partfile import PartFile

BLOCK = limits.BLOCK_BYTES


class Server(ThreadingHTTPServer):
    """Says nothing of clients that hang up; the tests mean them to."""

    def handle_error(self, *_: object) -> None:
        pass


class Web:
    """An HTTPS server that gives ranges of its blobs; `cut_after` and `answer` make it misbehave."""

    def __init__(self, state: Path) -> None:
        pki.create(state)
        self.ca = state / "pki" / "ca.crt"
        self.content = np.random.default_rng(0).bytes(9 * BLOCK + 5)
        listed = blocks.digests(self.content)
        sha256, list256 = hashlib.sha256(self.content).hexdigest(), hashlib.sha256(listed).hexdigest()
        self.blob = BlobRef(sha256, len(self.content), list256)
        self.blobs = {sha256: self.content, list256: listed}
        self.cut_after: list[int] = []
        self.answer: Callable[[BaseHTTPRequestHandler], bool] = lambda _request: False
        self.asked: list[tuple[str, int, int]] = []
        self.tokens: set[str] = set()
        web = self

        class Route(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                sha256 = self.path.rpartition("/")[2]
                begin, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
                web.asked.append((sha256, begin, last))
                web.tokens.add(self.headers["Authorization"])
                if web.answer(self):
                    return
                whole = web.blobs[sha256]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{last}/{len(whole)}")
                self.send_header("Content-Length", str(last + 1 - begin))
                self.end_headers()
                content = whole[begin : last + 1]
                self.wfile.write(content[: web.cut_after.pop(0)] if web.cut_after else content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Route)
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

    def asked_of_the_artifact(self) -> list[tuple[int, int]]:
        return [(begin, last) for sha256, begin, last in self.asked if sha256 == self.blob.sha256]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = Web(tmp_path / "web")
    yield made
    made.stop()


def ranges(web: Web, *, ca: Path | None = None, patience_s: float = 20.0, bytes_per_s: float = 0.0) -> Ranges:
    stopping = threading.Event()
    return Ranges(
        web.url, ca or web.ca, lambda: "a.b", patience_s=patience_s, bytes_per_s=bytes_per_s, stopping=stopping
    )


def test_a_pull_that_is_cut_goes_on_at_the_block_where_it_was_cut(web: Web, tmp_path: Path) -> None:
    web.cut_after = [32 * 10, 3 * BLOCK + 7, 5, 4 * BLOCK]
    assert Artifacts(tmp_path, ranges(web).fill).pull(web.blob).read_bytes() == web.content
    last = len(web.content) - 1
    assert web.asked_of_the_artifact() == [(0, last), (3 * BLOCK, last), (3 * BLOCK, last), (7 * BLOCK, last)]
    assert web.tokens == {f"{signatures.SCHEME} a.b"}


def test_only_the_blocks_that_are_missing_are_asked_for(web: Web, tmp_path: Path) -> None:
    part = bytearray(web.content)
    for index in (2, 3, 7):
        part[index * BLOCK] ^= 1
    (tmp_path / f"{web.blob.sha256}.part").write_bytes(part)
    assert Artifacts(tmp_path, ranges(web).fill).pull(web.blob).read_bytes() == web.content
    assert web.asked_of_the_artifact() == [(2 * BLOCK, 4 * BLOCK - 1), (7 * BLOCK, 8 * BLOCK - 1)]


def test_wrong_bytes_are_refused_after_a_few_blocks(web: Web, tmp_path: Path) -> None:
    web.blobs[web.blob.sha256] = bytes(len(web.content))
    with pytest.raises(RefusedError, match="SHA-256"):
        Artifacts(tmp_path, ranges(web).fill).pull(web.blob)
    assert len(web.asked_of_the_artifact()) == 3
    assert list(tmp_path.glob("*.part")) == []


def test_a_redirect_is_not_followed_and_a_refusal_is_given_up_in_time(web: Web, tmp_path: Path) -> None:
    def answer(request: BaseHTTPRequestHandler) -> bool:
        request.send_response(status)
        request.send_header("Location", f"{web.url}/elsewhere/{web.blob.sha256}")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return True

    web.answer = answer
    for status in (302, 307, 200, 403, 500):
        with pytest.raises(UnavailableError, match=f"HTTP {status}"):
            Artifacts(tmp_path, ranges(web, patience_s=0.1).fill).pull(web.blob)
    assert {sha256 for sha256, _, _ in web.asked} == {web.blob.blocks}


def test_a_range_of_something_else_is_not_read(web: Web, tmp_path: Path) -> None:
    def answer(request: BaseHTTPRequestHandler) -> bool:
        request.send_response(206)
        request.send_header("Content-Range", "bytes 0-5/6")
        request.end_headers()
        request.wfile.write(bytes(6))
        return True

    web.answer = answer
    with pytest.raises(UnavailableError, match="was asked for"):
        Artifacts(tmp_path, ranges(web, patience_s=0.1).fill).pull(web.blob)


def test_a_server_of_another_authority_gets_no_token(web: Web, tmp_path: Path) -> None:
    pki.create(tmp_path / "other")
    with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        Artifacts(tmp_path, ranges(web, ca=tmp_path / "other" / "pki" / "ca.crt", patience_s=0.1).fill).pull(web.blob)
    assert web.asked == []


def test_a_pull_ends_when_nobody_wants_it_and_when_the_rules_hold_it(web: Web, tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path, ranges(web).fill)
    with pytest.raises(GivenUpError):
        artifacts.pull(web.blob, give_up=lambda: len(web.asked) > 1)
    assert list(tmp_path.glob("*.part")) == []

    def closed() -> bool:
        part = tmp_path / f"{web.blob.sha256}.part"
        if part.exists() and part.stat().st_size > 2 * BLOCK:
            raise HeldError("the window closed")
        return False

    with pytest.raises(HeldError):
        artifacts.pull(web.blob, give_up=closed)
    del web.asked[:]
    assert artifacts.pull(web.blob).read_bytes() == web.content
    assert web.asked_of_the_artifact()[0][0] >= 2 * BLOCK


def test_a_disk_that_is_full_is_told_from_a_network_that_fails(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: PartFile, _index: int, _data: bytes) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PartFile, "accept", full)
    with pytest.raises(OSError, match="No space"):
        Artifacts(tmp_path, ranges(web).fill).pull(web.blob)
    assert len(web.asked) == 1


def test_a_cap_spreads_the_bytes_over_time(web: Web, tmp_path: Path) -> None:
    now = [0.0]
    stopping = threading.Event()
    stopping.wait = lambda timeout=None: now.__setitem__(0, now[0] + (timeout or 0.0)) or False  # type: ignore[assignment]
    made = Ranges(web.url, web.ca, lambda: "a.b", bytes_per_s=100_000, stopping=stopping, clock=lambda: now[0])
    assert Artifacts(tmp_path, made.fill).pull(web.blob).read_bytes() == web.content
    assert 10.0 < now[0] < 13.0  # 1.18 MB at 100 kB/s
