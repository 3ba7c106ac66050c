"""Metadata over HTTPS: a device's own fetcher against the coordinator's API on a socket."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from contract import limits, signatures
from coordinator import api, app, setup
from coordinator.client import Client
from coordinator.files import read_token
from coordinator.signing.signer import Signer
from edge_agent import metadata, trust
from edge_agent.errors import TrustError, UnavailableError
from tests.fakes.api_server import serving
from tests.fakes.broker_process import device_key_and_csr


class Laptop:
    """A coordinator whose signer has begun, and an enrolled device."""

    def __init__(self, state: Path) -> None:
        self.config = setup.init(state, signer_state=state / "signer")
        self.services = app.compose(state)
        self.web = app.web(self.services, api.Tokens.load(state), started_at=5.0)
        self.url, self.ca = f"https://127.0.0.1:{self.config.api_port}", state / "pki" / "ca.crt"
        self.client = Client(self.url, self.ca, read_token(state / "tokens" / "signer"), retry_s=5.0)
        self.key, csr = device_key_and_csr("meter-1")
        self.services.fleet.enrol(self.services.fleet.add("meter-1").token, csr, "x86-64")

    def token(self, *, audience: str = "metadata", key: ec.EllipticCurvePrivateKey | None = None) -> str:
        return signatures.issue_token(key or self.key, "meter-1", audience, time.time() + 60)


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Laptop]:
    made = Laptop(tmp_path)
    with serving(made.web, tmp_path, made.config.api_port):
        Signer(tmp_path / "signer").begin(made.client, time.time())
        yield made
        made.client.close()
    made.services.storage.engine.dispose()


def test_a_device_refreshes_over_https(laptop: Laptop, tmp_path: Path) -> None:
    fetch = metadata.over_https(laptop.url, laptop.ca, laptop.token)
    root = fetch("1.root.json", limits.ROOT_BYTES)
    assert root is not None
    assert fetch("2.root.json", limits.ROOT_BYTES) is None
    with pytest.raises(TrustError, match="names no target bundles/a/1/b"):
        trust.lookup(root, tmp_path / "device", "bundles/a/1/b", fetch)
    assert (tmp_path / "device" / "bundles.json").exists()


def test_only_enrolled_devices_read_it_and_only_with_a_token_for_it(laptop: Laptop) -> None:
    for token in ("", laptop.token(audience="blobs"), laptop.token(key=ec.generate_private_key(ec.SECP256R1()))):
        fetch = metadata.over_https(laptop.url, laptop.ca, lambda token=token: token)
        with pytest.raises(UnavailableError, match=r"HTTP 40[13]"):
            fetch("timestamp.json", limits.TIMESTAMP_BYTES)


def test_the_status_and_the_metrics_say_when_offline_metadata_expires(laptop: Laptop, tmp_path: Path) -> None:
    with Client.from_state(tmp_path) as operator:
        expires = operator.status().signing["expires"]
        assert {round((at - time.time()) / 86400) for at in expires.values()} == {365}
        (shown,) = re.findall(r'^fieldfare_metadata_expires_\w+{role="root"} (\S+)$', operator.metrics(), re.MULTILINE)
        assert float(shown) == expires["root"]
