"""A Mosquitto that somebody else runs, with the configuration of `fieldfare broker config`."""

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import config
from coordinator.broker import mosquitto
from tests.fakes.broker_process import Client, eventually, free_port, is_refused
from tests.fakes.served_site import ServedSite

pytestmark = [pytest.mark.slow, pytest.mark.mosquitto]


def _fieldfare(*arguments: str) -> str:
    command = [sys.executable, "-m", "fieldfare", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


class External(ServedSite):
    """A coordinator without a broker of its own, and a Mosquitto beside it."""

    def __init__(self, root: Path) -> None:
        state, self.folder, port = root / "state", root / "broker", str(free_port())
        _fieldfare("serve", "--state", str(state), "--init-only")
        options = ["--state", str(state), "--out", str(self.folder), "--host", "127.0.0.1", "--port", port]
        self.told = json.loads(_fieldfare("broker", "config", *options, "--user", getpass.getuser(), "--json"))
        self.log = root / "mosquitto.log"
        with self.log.open("ab") as log:
            command = [mosquitto.find(), "-c", self.told["configuration"]]
            self.mosquitto = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
        reload = ["kill", "-HUP", str(self.mosquitto.pid)]
        wanted = {**self.told["coordinator"], "broker_reload": reload}
        lines = [line for line in (state / config.FILE).read_text().splitlines() if line.split(" =")[0] not in wanted]
        told = [f"{key} = {json.dumps(value)}" for key, value in wanted.items()]
        (state / config.FILE).write_text("\n".join([*told, *lines]))
        super().__init__(state)

    def close(self) -> None:
        super().close()
        self.mosquitto.terminate()
        self.mosquitto.wait(20)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[External]:
    made = External(tmp_path)
    yield made
    made.close()


def test_mosquitto_takes_the_whole_configuration_and_a_revoked_device_is_off(site: External) -> None:
    assert site.status().broker["kind"] == "external"
    assert "broker" not in json.loads((site.state / "processes.json").read_bytes())
    for name in ("meter-1", "meter-2"):
        site.enrol(name)
    victim, neighbour = Client(site, "meter-1"), Client(site, "meter-2")
    try:
        assert victim.connected.is_set()
        site.client.revoke_device("meter-1")
        assert victim.closed.wait(5.0)
        assert is_refused(site, "meter-1")
        assert not neighbour.closed.is_set()
        assert neighbour.publish("fleet/v1/dev/meter-2/up/hello", b"")
    finally:
        victim.stop()
        neighbour.stop()
    said = site.log.read_text()
    assert "Unknown" not in said
    assert "Error:" not in said
    secrets = [path for path in site.folder.iterdir() if path.suffix == ".key" or path.name == "dynsec.json"]
    assert {path.stat().st_mode & 0o077 for path in secrets} == {0}


def test_a_reload_that_fails_is_said_and_tried_again(site: External, tmp_path: Path) -> None:
    site.enrol("meter-1")
    broken = (site.state / config.FILE).read_text().replace('["kill", ', '["false", ')
    (site.state / config.FILE).write_text(broken)
    site.end("coordinator")
    site.status()
    site.client.revoke_device("meter-1")
    log = site.state / "logs" / "coordinator.log"
    assert eventually(lambda: "broker_reload ['false'" in log.read_text(), 30)
    (site.state / config.FILE).write_text(broken.replace('["false", ', '["kill", '))
    client = Client(site, "meter-1")  # nobody told the broker
    assert client.connected.is_set()
    site.end("coordinator")
    assert client.closed.wait(30)
    client.stop()


def test_our_own_broker_role_is_refused(site: External) -> None:
    command = [sys.executable, "-m", "coordinator", "--state", str(site.state), "--role", "broker"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=os.environ)
    assert done.returncode != 0
    assert "fieldfare broker config" in done.stderr


def test_the_command_says_what_to_do(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    _fieldfare("serve", "--state", state, "--init-only")
    options = ["--host", "broker.example", "--listen", "0.0.0.0", "--port", "8883", "--folder", "/etc/mosquitto/fleet"]
    said = _fieldfare("broker", "config", "--state", state, "--out", str(tmp_path / "out"), *options)
    written = (tmp_path / "out" / mosquitto.CONFIGURATION).read_text()
    assert "listener 8883 0.0.0.0" in written
    assert "crlfile /etc/mosquitto/fleet/crl.pem" in written
    for line in ("chown -R mosquitto /etc/mosquitto/fleet", 'broker = "external"', 'broker_host = "broker.example"'):
        assert line in said
