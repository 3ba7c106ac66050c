"""A device whose key lives in a PKCS#11 token (SoftHSM), from enrolment to renewal and revocation."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from contract import signatures
from coordinator import pki
from edge_agent import certificate, signing, token_key
from edge_agent.errors import ConfigError
from edge_agent.identity import Identity
from tests.fakes import wrong_clock
from tests.fakes.broker_process import eventually
from tests.fakes.enrolled_agent import Agent
from tests.fakes.served_site import ServedSite

pytestmark = [pytest.mark.slow, pytest.mark.pkcs11]
MODULE = "/usr/lib/softhsm/libsofthsm2.so"


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a P-256 key in a token that is made for this test."""
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\nlog.level = ERROR\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    monkeypatch.setenv("PKCS11_MODULE_PATH", MODULE)
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "made.pem").write_bytes(key)
    (tmp_path / "pin").write_text("5678")
    for command in (
        ["--init-token", "--free", "--label", "fleet", "--so-pin", "1234", "--pin", "5678"],
        ["--import", str(tmp_path / "made.pem"), "--token", "fleet", "--label", "meter", "--id", "01", "--pin", "5678"],
    ):
        subprocess.run(["softhsm2-util", *command], check=True, capture_output=True)
    (tmp_path / "made.pem").unlink()
    return f"pkcs11:token=fleet;object=meter;pin-source=file:{tmp_path / 'pin'}"


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServedSite]:
    made = ServedSite(tmp_path / "state", "--broker", request.param)
    yield made
    made.close()


def test_a_device_enrols_connects_signs_renews_and_is_revoked_with_a_key_that_no_file_holds(
    site: ServedSite, uri: str, tmp_path: Path
) -> None:
    agent = Agent(site, tmp_path / "agent", "meter-1", "--key", uri)
    folder = agent.folder
    assert folder.key.read_text().strip() == uri
    assert not any(b"PRIVATE KEY" in path.read_bytes() for path in folder.root.rglob("*") if path.is_file())
    signatures.verify(folder.certificate.read_bytes(), b"receipt", signing.sign(folder.key, b"receipt"))
    before = agent.age(ended=False)
    agent.start()
    try:
        agent.until("connected")
        assert eventually(lambda: site.client.device("meter-1").connected, 60)
        agent.until("renewed")
        assert certificate.show(folder).ends > before.ends
        site.end("broker")  # the next connection shows the new certificate
        assert eventually(lambda: len(agent.events("connected")) > 1, 60), agent.log.read_text()
        site.client.revoke_device("meter-1")
        assert eventually(lambda: len(agent.events("disconnected")) > 1, 10)
    finally:
        agent.stop()
    assert "Traceback" not in agent.log.read_text()
    assert "5678" not in agent.log.read_text()


def test_over_https_it_renews_with_the_key_in_the_token(site: ServedSite, uri: str, tmp_path: Path) -> None:
    agent = Agent(site, tmp_path / "agent", "meter-1", "--key", uri)
    agent.age(ended=True)
    assert certificate.ask(agent.folder.root, "fetch") == certificate.show(agent.folder)
    agent.token = site.client.add_device("meter-1", again=True).token
    agent.command("enrol", "--again", "--key", uri)
    Identity("meter-1", agent.folder).tls()
    found = _findings(agent)
    assert (found["certificate"]["outcome"], found["broker"]["outcome"]) == ("ok", "ok"), found


def test_a_broker_that_is_not_the_fleets_is_not_spoken_to(site: ServedSite, uri: str, tmp_path: Path) -> None:
    agent = Agent(site, tmp_path / "agent", "meter-1", "--key", uri)
    pki.create(tmp_path / "other")
    agent.folder.ca.write_bytes((tmp_path / "other" / "pki" / "ca.crt").read_bytes())
    assert _findings(agent)["broker"]["outcome"] == "fail"
    agent.start()
    try:
        assert eventually(lambda: "verify" in agent.log.read_text(), 60), agent.log.read_text()
        assert agent.events("connected") == []
    finally:
        agent.stop()


def _findings(agent: Agent) -> dict[str, dict[str, str]]:
    command = [sys.executable, "-m", "edge_agent", "doctor", "--state", str(agent.folder.root), "--json"]
    said = subprocess.run(command, capture_output=True, check=False, timeout=120).stdout
    found = json.loads(said)
    return {finding["check"]: finding for finding in (found["findings"] if isinstance(found, dict) else found)}


@pytest.mark.parametrize("site", ["mosquitto"], indirect=True)
@pytest.mark.mosquitto
def test_with_a_clock_at_1970_it_connects_and_still_only_to_the_fleets_broker(
    site: ServedSite, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent(site, tmp_path / "agent", "meter-1", "--key", uri)
    for name, value in wrong_clock.environment(tmp_path, 86400.0).items():
        monkeypatch.setenv(name, value)
    agent.start()
    try:
        agent.until("connected")
    finally:
        agent.stop()
    pki.create(tmp_path / "other")
    agent.folder.ca.write_bytes((tmp_path / "other" / "pki" / "ca.crt").read_bytes())
    agent.log.unlink()
    agent.start()
    try:
        assert eventually(lambda: "verify" in agent.log.read_text(), 60), agent.log.read_text()
        assert len(agent.events("connected")) == 1
    finally:
        agent.stop()


def test_what_cannot_work_is_said(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "device.key"
    for name, sentence in (
        ("pkcs11:token=fleet;object=meter;pin-value=5678", "pin-source"),
        ("pkcs11:token=fleet;object=meter;pin-source=file:/a\tb", "named by its URI"),
        ("pkcs11:" + "a" * 2000, "named by its URI"),
    ):
        key.write_text(name)
        with pytest.raises(ConfigError, match=sentence):
            token_key.uri(key)
    with pytest.raises(ConfigError, match="cannot be used"):
        token_key.public_key(uri.replace("object=meter", "object=none"))
    (tmp_path / "wrong").write_text("0000")
    with pytest.raises(ConfigError, match="cannot be used"):
        token_key.sign(uri.replace(str(tmp_path / "pin"), str(tmp_path / "wrong")), b"payload")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="needs the program openssl"):
        token_key.public_key(uri)
