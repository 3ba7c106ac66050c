"""`fieldfare devices revoke` against whole processes: coordinator, broker, and devices that are connected."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from contract import signatures
from coordinator import config
from tests.fakes.broker_process import Client, eventually, is_refused
from tests.fakes.served_site import ServedSite

pytestmark = pytest.mark.slow
DEADLINE_S = 5.0  # a revoked device must be off by then


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServedSite]:
    made = ServedSite(tmp_path / "state", "--broker", request.param)
    yield made
    made.close()


def test_a_revoked_device_is_off_within_seconds_and_unable_to_return(site: ServedSite) -> None:
    for name in ("meter-1", "meter-2"):
        site.enrol(name)
    victim, neighbour = Client(site, "meter-1", clean=False), Client(site, "meter-2", clean=False)
    try:
        assert victim.connected.is_set()
        assert neighbour.connected.is_set()
        token = signatures.issue_token(site.keys["meter-1"], "meter-1", "renew", time.time() + 60)
        command = [sys.executable, "-m", "fieldfare", "devices", "revoke", "meter-1", "--reason", "stolen"]
        said = subprocess.run([*command, "--state", site.state], capture_output=True, text=True, check=True, timeout=60)
        assert victim.closed.wait(DEADLINE_S)
        assert "meter-1: revoked" in said.stdout
        assert is_refused(site, "meter-1")
        assert is_refused(site, "meter-1", client_id="meter-2")
        assert is_refused(site, "meter-1", client_id="another")
        assert site.client.device("meter-1").revoked_reason == "stolen"
        header = {"Authorization": f"{signatures.SCHEME} {token}"}
        with httpx.Client(verify=site.tls(None), base_url=site.client.url) as web:
            assert web.post("/v1/renew", headers=header).status_code == 403
            assert web.post("/v1/enrol", json=site.spent["meter-1"]).status_code == 403
        assert not eventually(neighbour.closed.is_set, 4.0)  # the broker is told three times, a second apart
        assert neighbour.publish("fleet/v1/dev/meter-2/up/hello", b"")
        assert is_refused(site, "meter-1")
    finally:
        victim.stop()
        neighbour.stop()


def test_a_broker_that_starts_anew_still_refuses_it(site: ServedSite) -> None:
    site.enrol("meter-1")
    site.client.revoke_device("meter-1")
    assert eventually(lambda: is_refused(site, "meter-1"), DEADLINE_S)
    site.end("broker")
    site.status()
    assert is_refused(site, "meter-1")
    assert config.load(site.state).broker == site.status().broker["kind"]
