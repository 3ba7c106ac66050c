"""A device's identity over whole processes: enrolled, renewed both ways, and no secret where it does not belong."""

import base64
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent import certificate
from edge_agent.config import Folder
from tests.fakes.broker_process import eventually
from tests.fakes.enrolled_agent import Agent
from tests.fakes.served_site import ServedSite

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def site(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[ServedSite]:
    made = ServedSite(tmp_path_factory.mktemp("site") / "state", "--broker", request.param)
    yield made
    made.close()


def _settings(folder: Folder, **settings: str) -> None:
    text = folder.config.read_text()
    for key, value in settings.items():
        [line] = [line for line in text.splitlines() if line.startswith(f"{key} = ")]
        text = text.replace(line, f"{key} = {value}")
    folder.config.write_text(text)


def test_a_certificate_renews_over_mqtt_alone(site: ServedSite, tmp_path: Path) -> None:
    agent = Agent(site, tmp_path / "agent", f"mqtt-{site.status().broker['kind']}")
    key = agent.folder.key.read_bytes()
    before = agent.age(ended=False)
    _settings(agent.folder, url='""')
    agent.start()
    try:
        agent.until("renewed")
        after = certificate.show(agent.folder)
        assert after.ends > before.ends + 29 * 86400
        assert agent.folder.key.read_bytes() == key
        assert site.client.device(agent.device).certificate_expires_at == after.ends
        assert agent.events("disconnected") == []
    finally:
        agent.stop()


def test_a_device_that_was_away_too_long_comes_back_over_https_and_then_the_broker_lets_it_in(
    site: ServedSite, tmp_path: Path
) -> None:
    agent = Agent(site, tmp_path / "agent", f"https-{site.status().broker['kind']}")
    agent.age(ended=True)
    agent.start()
    try:
        agent.until("connected")
        assert [event["event"] for event in agent.events("certificate-expired", "renewed", "connected")] == [
            "certificate-expired",
            "renewed",
            "connected",
        ]
    finally:
        agent.stop()
    assert "Traceback" not in agent.log.read_text()


def test_a_revoked_device_returns_with_a_new_key_and_its_old_state(site: ServedSite, tmp_path: Path) -> None:
    agent = Agent(site, tmp_path / "agent", f"back-{site.status().broker['kind']}")
    agent.start()
    agent.until("connected")
    site.client.revoke_device(agent.device, "lost")
    assert eventually(lambda: agent.events("disconnected"), 5.0), agent.log.read_text()
    agent.stop()
    agent.token = site.client.add_device(agent.device, again=True).token
    agent.command("enrol", "--again", "--new-key")
    before = len(agent.events("connected"))
    agent.start()
    try:
        assert eventually(lambda: len(agent.events("connected")) > before, 60), agent.log.read_text()
        assert eventually(lambda: site.client.device(agent.device).connected, 30)
    finally:
        agent.stop()


def test_secrets_are_their_owners_alone_and_stand_in_no_log(site: ServedSite, tmp_path: Path) -> None:
    agent = Agent(site, tmp_path / "agent", f"quiet-{site.status().broker['kind']}")
    agent.age(ended=True)  # so that it signs tokens too
    agent.start()
    agent.until("connected")
    said = agent.command("status", "--json") + agent.command("status")
    archive = site.client.diagnostics(site.client.wait_command(site.client.diagnose(agent.device), timeout_s=120))
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        diagnostics = {f"diagnostics {name}": files.read(name).decode() for name in files.namelist()}
    site.client.revoke_device(agent.device)
    assert eventually(lambda: agent.events("disconnected"), 30)
    agent.stop()

    open_to_others = [
        (str(path), oct(path.stat().st_mode))
        for root in (site.state, agent.folder.root)
        for path in [root, *root.rglob("*")]
        if _is_secret(path) and path.stat().st_mode & 0o077
    ]
    assert open_to_others == []
    secrets = _secrets(site.state, agent)
    assert len(secrets) >= 10
    logs = [*(site.state / "logs").glob("*.log"), agent.told, agent.log]
    texts = {str(path): path.read_text() for path in logs} | {"status": said} | diagnostics
    assert all(texts.values())
    assert diagnostics
    found = [(place, name) for place, text in texts.items() for name, secret in secrets.items() if secret in text]
    assert found == []
    assert not any("PRIVATE KEY" in text or "Fieldfare-Device " in text for text in texts.values())


def _is_secret(path: Path) -> bool:
    """Everything but certificates, public keys and signed metadata, which everybody may see, and sockets."""
    name = re.sub(r"^\.(.+)-[^-]+$", r"\1", path.name)  # of a file that is being written
    public = Path(name).suffix in {".crt", ".pem", ".pub"} or path.parent.name == "metadata"
    return path.is_dir() or (path.is_file() and not public)


def _secrets(state: Path, agent: Agent) -> dict[str, str]:
    """Pieces of every key and token that would be recognised in a log: of keys the middle line of their PEM."""
    found = {str(path): path.read_text().strip() for path in (state / "tokens").iterdir()}
    keys = [path for root in (state, agent.folder.root) for path in root.rglob("*") if path.is_file()]
    for path in keys:
        content = path.read_bytes()
        if b"PRIVATE KEY" in content:
            found[str(path)] = content.decode().splitlines()[1][20:60]
    raw = base64.b64decode("".join(agent.folder.key.read_text().splitlines()[1:-1]))
    return {**found, "key in hexadecimal": raw[40:60].hex(), "enrolment token": agent.token}
