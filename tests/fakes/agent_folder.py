"""The folder of an enrolled agent, made by hand, and a stand-in for the service manager's sockets."""

import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization

from coordinator import pki
from edge_agent import config
from edge_agent.config import Config, Folder
from tests.fakes.broker_process import device_key_and_csr


def enrolled(root: Path, authority: Path, device: str = "meter-1", *, days: int = 1, **settings: Any) -> Folder:
    """A folder with a certificate by the authority in `authority`, which is made if it is missing."""
    if not (authority / "pki").exists():
        pki.create(authority)
    made = Folder(root)
    key, csr = device_key_and_csr(device)
    certificate = pki.Authority.load(authority).sign_csr(csr, device, days=days, now=datetime.now(UTC))
    made.key.parent.mkdir(parents=True, mode=0o700)
    root.chmod(0o700)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    made.key.touch(mode=0o600)
    made.key.write_bytes(pem)
    made.certificate.write_bytes(certificate)
    made.ca.write_bytes((authority / "pki" / "ca.crt").read_bytes())
    config.save(made, Config(**{"device": device, "broker_host": "127.0.0.1", "broker_port": 1, **settings}))
    return made


class Datagrams:
    """A Unix datagram socket that remembers what it is sent; a name with `@` is in the abstract namespace."""

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self._socket.settimeout(0.05)
        self.got: list[bytes] = []

    def read(self) -> list[bytes]:
        """Everything that has come so far."""
        try:
            while True:
                self.got.append(self._socket.recv(256 * 1024))
        except TimeoutError:
            return self.got

    def close(self) -> None:
        self._socket.close()
