"""A device of a served site, enrolled and run with the commands that a person uses."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from sqlalchemy import update

from coordinator import config as coordinator_config
from coordinator import pki
from coordinator.fleet.tables import devices
from coordinator.storage import open_engine
from edge_agent import certificate
from edge_agent.config import Folder
from tests.fakes.broker_process import eventually
from tests.fakes.served_site import ServedSite


class Agent:
    """A device, enrolled and run with the commands that a person uses."""

    def __init__(self, site: ServedSite, root: Path, device: str, *options: str) -> None:
        self.site, self.device, self.folder = site, device, Folder(root)
        self.told, self.log = root.parent / "events", root.parent / "log"
        self.token = site.client.add_device(device).token
        place = ["--url", site.client.url, "--ca", str(site.state / "pki" / "ca.crt")]
        self.command("enrol", "--device", device, *place, *options)
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, name: str, *options: str) -> str:
        command = [sys.executable, "-m", "edge_agent", name, "--state", str(self.folder.root), *options]
        environment = {**os.environ, "FIELDFARE_TOKEN": self.token}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def age(self, *, ended: bool) -> certificate.Validity:
        """Give it, and the coordinator, a certificate for its key that is almost over, or over."""
        now, authority = datetime.now(UTC), pki.Authority.load(self.site.state)
        key = x509.load_pem_x509_certificate(self.folder.certificate.read_bytes()).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        begin, lasts = (now - timedelta(days=2), timedelta(days=1)) if ended else (now, timedelta(minutes=2))
        made = authority.issue(key, self.device, usage=ExtendedKeyUsageOID.CLIENT_AUTH, lasts=lasts, now=begin)
        pem = pki._pem(made)
        self.folder.certificate.write_bytes(pem)
        engine = open_engine(coordinator_config.load(self.site.state).database_url(self.site.state))
        with engine.begin() as connection:
            mine = devices.c.name == self.device
            connection.execute(update(devices).where(mine).values(certificate_pem=pem.decode()))
        engine.dispose()
        return certificate.show(self.folder)

    def start(self) -> None:
        command = [sys.executable, "-m", "edge_agent", "run", "--state", str(self.folder.root), "--verbose", "--json"]
        with self.told.open("ab") as told, self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=told, stderr=log)

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(60) == 0, self.log.read_text()

    def events(self, *names: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.told.read_text().splitlines()]
        return [event for event in lines if event["event"] in names]

    def until(self, event: str) -> None:
        assert eventually(lambda: self.events(event), 60), self.log.read_text()
