"""A real broker in its own process, and paho clients with certificates to talk to it."""

import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from paho.mqtt.enums import CallbackAPIVersion

from coordinator import pki
from coordinator.config import Config, save


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def eventually(condition: Any, timeout: float = 10.0) -> Any:
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value or time.monotonic() > end:
            return value
        time.sleep(0.02)


def device_key_and_csr(name: str) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return key, request.public_bytes(serialization.Encoding.PEM)


class BrokerProcess:
    """`coordinator.broker.run` on a fresh state folder."""

    def __init__(self, state: Path, kind: str) -> None:
        self.state = state
        self.port = free_port()
        save(state, Config(api_port=free_port(), broker_port=self.port, broker=kind))
        pki.create(state)
        self.authority = pki.Authority.load(state)
        self.log = state / "broker.log"
        self.start()

    def start(self) -> None:
        code = "import sys,pathlib; from coordinator import broker; sys.exit(broker.run(pathlib.Path(sys.argv[1])))"
        with self.log.open("ab") as log:
            command = [sys.executable, "-W", "error", "-c", code, str(self.state)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        assert eventually(self._listening, 20), self.log.read_text()

    def _listening(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(15)

    def certificate(self, name: str) -> tuple[Path, Path]:
        """Certificate and key files of a client."""
        if name == "coordinator":
            return self.state / "pki" / "coordinator.crt", self.state / "pki" / "coordinator.key"
        certificate, key_path = self.state / f"{name}.crt", self.state / f"{name}.key"
        if not certificate.exists():
            key, csr = device_key_and_csr(name)
            pem = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            key_path.write_bytes(pem)
            certificate.write_bytes(self.authority.sign_csr(csr, name, days=1, now=datetime.now(UTC)))
        return certificate, key_path

    def tls(self, name: str | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.state / "pki" / "ca.crt"))
        if name is not None:
            certificate, key = self.certificate(name)
            context.load_cert_chain(certificate, key)
        return context


class Client:
    """A paho client that records what comes."""

    def __init__(
        self,
        broker: BrokerProcess,
        name: str,
        *,
        client_id: str | None = None,
        clean: bool = True,
        will: tuple[str, bytes] | None = None,
        keepalive: int = 30,
    ) -> None:
        self.messages: list[Any] = []
        self.connected, self.closed = threading.Event(), threading.Event()
        self.code: Any = None
        self.present = False
        self.acked: set[int] = set()
        self.suback: dict[int, Any] = {}
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id or name,
            clean_session=clean,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        self._client.tls_set_context(broker.tls(name))
        if will:
            self._client.will_set(will[0], will[1], qos=1)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = lambda *_: self.closed.set()
        self._client.on_message = lambda _c, _u, message: self.messages.append(message)
        self._client.on_publish = lambda _c, _u, mid, _r, _p: self.acked.add(mid)
        self._client.on_subscribe = lambda _c, _u, mid, codes, _p: self.suback.update({mid: codes})
        self._client.connect("127.0.0.1", broker.port, keepalive)
        self._client.loop_start()
        eventually(lambda: self.connected.is_set() or self.closed.is_set())

    def _on_connect(self, _client: Any, _data: Any, flags: Any, code: Any, _properties: Any) -> None:
        self.code, self.present = code, flags.session_present
        if not code.is_failure:
            self.connected.set()

    def subscribe(self, topic_filter: str) -> list[Any]:
        _, mid = self._client.subscribe(topic_filter, 1)
        assert eventually(lambda: mid in self.suback)
        return list(self.suback[mid])

    def publish(self, topic: str, data: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        info = self._client.publish(topic, data, qos, retain)
        return bool(eventually(lambda: info.mid in self.acked or self.closed.is_set())) and info.mid in self.acked

    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages]

    def cut(self) -> None:
        """Drop the connection without a DISCONNECT."""
        self._client._sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
        self._client.loop_stop()
        self._client._reset_sockets()  # also its wake-up sockets, which it would leave to the garbage collector

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._client._reset_sockets()  # also its wake-up sockets, which it would leave to the garbage collector


def is_refused(broker: Any, name: str, **options: Any) -> bool:
    """Whether a new client gets nowhere, be it at the handshake or at the CONNECT."""
    try:
        client = Client(broker, name, **options)
    except OSError:
        return True
    refused = not client.connected.is_set()
    client.stop()
    return refused
