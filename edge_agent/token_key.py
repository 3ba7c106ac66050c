"""A device key that lives in a PKCS#11 token (TPM, smart card, secure element) and never leaves it.

`pki/device.key` then holds the key's URI (RFC 7512): `pkcs11:token=fleet;object=meter-1;pin-source=file:/etc/pin`.
Python's TLS takes keys from files only, so OpenSSL's command with its pkcs11 engine signs, and carries each connection
to the broker through a child (`openssl s_client`) on a pair of sockets that no other process can open. The engine finds
the token's driver by p11-kit, or by the environment variable PKCS11_MODULE_PATH.
"""

import ipaddress
import logging
import socket
import ssl
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from edge_agent import RELEASED
from edge_agent.errors import ConfigError

_LOG = logging.getLogger(__name__)
SCHEME = "pkcs11:"
_URI_BYTES = 1024
_COMMAND_S = 60.0  # a slow token
_GOODBYE_S = 1.0
_LOOK_S = 2.0
_ENGINE = ["-engine", "pkcs11"]


def uri(key: Path) -> str | None:
    """The URI in a key file; None where the file holds a key.

    Raises:
        ConfigError: a URI that will not do.
        OSError: the file cannot be read.
    """
    with key.open("rb") as file:
        content = file.read(_URI_BYTES + 1)
    return checked(content.decode().strip()) if content.startswith(SCHEME.encode()) else None


def checked(text: str) -> str:
    """A URI that can be used.

    Raises:
        ConfigError: it is none, or holds a PIN, which every process of this machine could see.
    """
    if not text.startswith(SCHEME) or len(text) > _URI_BYTES or not text.isprintable():
        raise ConfigError(f"{text[:80]!r}: a key in a token is named by its URI, pkcs11:token=...;object=...")
    if "pin-value" in text:
        raise ConfigError(
            "pin-value in a pkcs11 URI can be seen by others; put the PIN into a file: pin-source=file:/PATH"
        )
    return text


def sign(name: str, payload: bytes) -> bytes:
    """DER-encoded ECDSA signature, made in the token; errors as `public_key`."""
    return _openssl("dgst", "-sha256", *_ENGINE, "-keyform", "engine", "-sign", name, given=payload)


def public_key(name: str) -> bytes:
    """The public key in PEM.

    Raises:
        ConfigError: no OpenSSL with the pkcs11 engine, no such token or key, or a wrong PIN.
    """
    return _openssl("pkey", *_ENGINE, "-inform", "engine", "-in", name, "-pubout")


def request(name: str, device: str) -> bytes:
    """A certificate request in PEM, signed in the token; errors as `public_key`."""
    return _openssl("req", "-new", "-batch", *_ENGINE, "-keyform", "engine", "-key", name, "-subj", f"/CN={device}")


def _openssl(*arguments: str, given: bytes = b"") -> bytes:
    try:
        done = subprocess.run(
            ["openssl", *arguments], input=given, capture_output=True, check=False, timeout=_COMMAND_S
        )
    except FileNotFoundError as error:
        raise ConfigError("a key in a token needs the program openssl and its pkcs11 engine; install both") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"the token did not answer in {_COMMAND_S:.0f} s") from error
    if done.returncode or not done.stdout:
        raise ConfigError(f"the key in the token cannot be used: {_complaint(done.stderr)}")
    return done.stdout


def _complaint(said: bytes) -> str:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line]
    return (errors or lines or ["OpenSSL gave no reason"])[0][:300]


class TokenContext(ssl.SSLContext):
    """What paho takes for TLS: its connections are carried by a child that knows the key by name."""

    _arguments: list[str]

    @classmethod
    def make(cls, name: str, certificate: Path, ca: Path) -> "TokenContext":
        """Check that the token has the key; errors as `public_key`."""
        public_key(name)
        made = cls(ssl.PROTOCOL_TLS_CLIENT)
        made._arguments = [
            *("s_client", "-quiet", "-no_ign_eof", "-nocommands", "-min_protocol", "TLSv1.2"),
            *("-CAfile", str(ca), "-no-CApath", "-no-CAstore", "-verify_return_error"),
            *("-cert", str(certificate), *_ENGINE, "-keyform", "engine", "-key", name),
        ]
        return made

    def wrap_socket(self, sock: socket.socket, *_: Any, server_hostname: Any = None, **__: Any) -> Any:
        """A connection of its own to where `sock` leads, which is closed."""
        host, port = sock.getpeername()[:2]
        timeout = sock.gettimeout()
        sock.close()
        try:
            ipaddress.ip_address(server_hostname)
            names = ["-verify_ip", server_hostname, "-noservername"]
        except ValueError:
            names = ["-verify_hostname", server_hostname, "-servername", server_hostname]
        if time.time() < RELEASED:  # as in `identity`
            names.append("-no_check_time")
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return Tunnel.start(["openssl", *self._arguments, *names, "-connect", place], timeout)


class Tunnel(socket.socket):
    """Our end of the connection; the child has the other."""

    _child: "subprocess.Popen[bytes]"
    _said: IO[bytes]

    @classmethod
    def start(cls, command: list[str], timeout: float | None) -> "Tunnel":
        """Start the child."""
        ours, theirs = socket.socketpair()
        said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the socket
        with theirs:
            child = subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=said)
        made = cls(fileno=ours.detach())
        made._child, made._said = child, said
        made.settimeout(timeout)
        return made

    def do_handshake(self) -> None:
        """The child does it, before it passes on the first byte."""

    def version(self) -> str:
        """What carries the connection; waits a little for a child that cannot.

        Raises:
            ConnectionError: the child has given up.
        """
        deadline = time.monotonic() + _LOOK_S
        while time.monotonic() < deadline:
            if self._child.poll() is not None:
                raise ConnectionError(self._complaint())
            time.sleep(0.05)
        return "TLS with the key in the token"

    def _complaint(self) -> str:
        self._said.seek(0)
        return _complaint(self._said.read(65536))

    def pending(self) -> int:
        """Bytes that were read and not given out."""
        return 0

    def close(self) -> None:
        """Let the child send what it has, and end it; the log hears what it said, since paho asks no more by then."""
        super().close()
        if self._said.closed:
            return
        _end(self._child)
        if self._child.returncode > 0:
            _LOG.warning("the connection through the token's key ended: %s", self._complaint())
        self._said.close()


def _end(child: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _GOODBYE_S
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    child.kill()
    child.wait()
