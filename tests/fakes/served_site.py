"""A coordinator as a person starts it, and devices that enrolled over its HTTPS API."""

import json
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator import config
from coordinator.client import Client, ClientError, Status
from tests.fakes.broker_process import device_key_and_csr, eventually


class ServedSite:
    """`fieldfare serve` with every role; it has what `broker_process.Client` asks of a broker."""

    def __init__(self, state: Path, *options: str) -> None:
        self.state = state
        self.keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.spent: dict[str, dict[str, str]] = {}  # enrolment requests, by device
        command = [sys.executable, "-m", "coordinator", "--state", str(state), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert eventually((state / "processes.json").exists, 60)
        self.port = config.load(state).broker_port
        self.client = Client.from_state(state)
        self.status()

    def status(self) -> Status:
        """Once the coordinator answers and is connected to the broker, and the signer has begun."""

        def look() -> Status | None:
            assert self.process.poll() is None
            try:
                status = self.client.status()
            except ClientError:
                return None
            return status if status.broker["connected"] and status.signing["published"] else None

        found = eventually(look, 60)
        assert found is not None
        return found

    def end(self, role: str) -> None:
        """Kill a role, and wait until the supervisor has started it again."""

        def pid() -> int:
            return int(json.loads((self.state / "processes.json").read_bytes())[role]["pid"])

        before = pid()
        os.kill(before, signal.SIGKILL)
        assert eventually(lambda: pid() != before, 30)

    def enrol(self, name: str) -> None:
        """Enrol a device as one does over HTTPS."""
        self.keys[name], csr = device_key_and_csr(name)
        token = self.client.add_device(name).token
        self.spent[name] = {"token": token, "csr": csr.decode(), "hardware_class": "x86-64"}
        made = self.client.post("/v1/enrol", dict[str, Any], self.spent[name])
        pem = self.keys[name].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        certificate, key = self.certificate(name)
        key.write_bytes(pem)
        certificate.write_text(made["certificate"])

    def certificate(self, name: str) -> tuple[Path, Path]:
        """Certificate and key files of a device."""
        return self.state.parent / f"{name}.crt", self.state.parent / f"{name}.key"

    def tls(self, name: str | None) -> ssl.SSLContext:
        """TLS that trusts this coordinator's authority, and shows a device's certificate."""
        context = ssl.create_default_context(cafile=str(self.state / "pki" / "ca.crt"))
        if name is not None:
            context.load_cert_chain(*self.certificate(name))
        return context

    def close(self) -> None:
        """Stop it."""
        self.client.close()
        self.process.terminate()
        self.process.communicate(timeout=60)
