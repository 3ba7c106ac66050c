"""Artifacts over HTTPS: a device's own transport against the coordinator's API on a socket."""

import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from contract import limits, signatures
from contract.messages import BlobRef
from coordinator import api, app, setup
from coordinator.deltas.tables import patches
from edge_agent.artifacts import Artifacts
from edge_agent.errors import UnavailableError
from edge_agent.https_transfer import Ranges
from tests.fakes.api_server import serving
from tests.fakes.broker_process import device_key_and_csr

BLOCK = limits.BLOCK_BYTES


class Laptop:
    """A coordinator with an artifact that devices may fetch, one that they may not, and an enrolled device."""

    def __init__(self, state: Path) -> None:
        config = setup.init(state, signer_state=state / "signer")
        self.port, self.ca = config.api_port, state / "pki" / "ca.crt"
        self.services = app.compose(state)
        self.web = app.web(self.services, api.Tokens.load(state), started_at=5.0)
        self.url = f"https://127.0.0.1:{self.port}"
        self.key, csr = device_key_and_csr("meter-1")
        self.services.fleet.enrol(self.services.fleet.add("meter-1").token, csr, "x86-64")
        self.content = np.random.default_rng(0).bytes(5 * BLOCK + 77)
        self.blob = self.services.storage.blobs.put_artifact(self.content)
        self.secret = self.services.storage.blobs.put_artifact(b"somebody's weights")
        row = {"base_sha256": "", "target_sha256": "0" * 64, "created_at": 0.0}
        with self.services.storage.engine.begin() as connection:
            patch = {"sha256": self.blob.sha256, "size": self.blob.size, "blocks": self.blob.blocks}
            connection.execute(patches.insert().values(**row, **patch))

    def token(self, *, audience: str = "blobs", key: ec.EllipticCurvePrivateKey | None = None) -> str:
        return signatures.issue_token(key or self.key, "meter-1", audience, time.time() + 60)

    def pull(self, staging: Path, blob: BlobRef, token: str) -> Path:
        stopping = threading.Event()
        ranges = Ranges(self.url, self.ca, lambda: token, patience_s=0.5, stopping=stopping)
        return Artifacts(staging, ranges.fill).pull(blob)

    def get(self, blob: BlobRef, **headers: str) -> httpx.Response:
        headers = {"Authorization": f"{signatures.SCHEME} {self.token()}", **headers}
        context = ssl.create_default_context(cafile=str(self.ca))
        return httpx.get(f"{self.url}/v1/artifacts/{blob.sha256}", headers=headers, verify=context)


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Laptop]:
    made = Laptop(tmp_path / "coordinator")
    with serving(made.web, tmp_path / "coordinator", made.port):
        yield made
    made.services.storage.engine.dispose()


def test_a_device_pulls_an_artifact_and_resumes_it(laptop: Laptop, tmp_path: Path) -> None:
    path = laptop.pull(tmp_path, laptop.blob, laptop.token())
    assert path.read_bytes() == laptop.content
    broken = bytearray(laptop.content[: 4 * BLOCK])
    broken[BLOCK] ^= 1
    path.write_bytes(broken)
    assert laptop.pull(tmp_path, laptop.blob, laptop.token()).read_bytes() == laptop.content


def test_only_enrolled_devices_get_anything_and_only_what_they_may_have(laptop: Laptop, tmp_path: Path) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    for token in ("", "a.b", laptop.token(audience="metadata"), laptop.token(key=stranger)):
        with pytest.raises(UnavailableError, match=r"HTTP 40[13]"):
            laptop.pull(tmp_path, laptop.blob, token)
    with pytest.raises(UnavailableError, match="HTTP 404"):
        laptop.pull(tmp_path, laptop.secret, laptop.token())
    with pytest.raises(UnavailableError, match="HTTP 404"):
        laptop.pull(tmp_path, BlobRef("0" * 64, 5), laptop.token())


@pytest.mark.parametrize(
    ("header", "begin", "end"),
    [("bytes=0-0", 0, 1), ("bytes=10-", 10, None), ("bytes=5-99999999", 5, None), ("bytes=655360-", 655360, None)],
)  # fmt: skip
def test_a_range_is_given_to_the_byte(laptop: Laptop, header: str, begin: int, end: int | None) -> None:
    response = laptop.get(laptop.blob, Range=header)
    assert response.status_code == 206
    assert response.content == laptop.content[begin:end]
    last = (len(laptop.content) if end is None else end) - 1
    assert response.headers["Content-Range"] == f"bytes {begin}-{last}/{len(laptop.content)}"


@pytest.mark.parametrize(
    "header", ["bytes=99999999-", "bytes=5-4", "bytes=-5", "bytes=0-1,3-4", "lines=1-2", "bytes=a-b"]
)
def test_a_range_that_cannot_be_given_is_refused(laptop: Laptop, header: str) -> None:
    response = laptop.get(laptop.blob, Range=header)
    assert (response.status_code, response.headers["Content-Range"]) == (416, f"bytes */{len(laptop.content)}")


def test_without_a_range_the_whole_comes(laptop: Laptop) -> None:
    response = laptop.get(laptop.blob)
    assert (response.status_code, response.content) == (200, laptop.content)
