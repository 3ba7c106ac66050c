"""Enrolment: a key that never leaves the device, a request signed with it, and a one-time token for a certificate."""

import base64
import http.client
import json
import urllib.parse
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from contract import topics
from contract.errors import TopicError
from edge_agent.config import Config, Folder, save
from edge_agent.errors import ConfigError, EnrolmentError
from edge_agent.files import write_atomically
from edge_agent.identity import server_tls

_ANSWER_BYTES = 256 * 1024


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the device sends: the token is spent by it."""

    token: str
    csr: str
    hardware_class: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the coordinator gives: PEM certificates, where the broker is, and the TUF root in base64."""

    certificate: str
    ca: str
    broker_host: str
    broker_port: int
    root: str


def enrol(root: Path, *, device: str, url: str, ca: Path, token: str, hardware_class: str) -> Config:
    """Enrol this device and write its folder; a try that failed half-way may be repeated with a new token.

    Args:
        root: the agent's folder; made if missing.
        device: name as the coordinator knows it.
        url: of the coordinator's API, `https://host:port`.
        ca: the only certificate authority that is trusted to be the coordinator.
        token: one-time token.
        hardware_class: bundles may be made for some classes only.

    Returns:
        The configuration that was written.

    Raises:
        ConfigError: the name, URL or CA file is no such thing, or the folder is enrolled already.
        EnrolmentError: the coordinator refused or cannot be reached.
    """
    try:
        topics.check_device(device)
    except TopicError as error:
        raise ConfigError(str(error)) from error
    folder = Folder(root)
    if folder.config.exists():
        raise ConfigError(f"{root} is enrolled already; choose another --state, or remove that folder first")
    key = _key(folder.key)
    request = Request(token=token, csr=_request(key, device), hardware_class=hardware_class)
    answer = _post(url, ca, request)
    _check(answer, key, device)
    write_atomically(folder.certificate, answer.certificate.encode())
    write_atomically(folder.ca, answer.ca.encode())
    write_atomically(folder.tuf_root, base64.b64decode(answer.root))
    enrolment = {"device": device, "url": url, "hardware_class": hardware_class}
    write_atomically(folder.enrolment, json.dumps(enrolment, indent=2).encode())
    config = Config(
        device=device,
        broker_host=answer.broker_host,
        broker_port=answer.broker_port,
        url=url,
        hardware_class=hardware_class,
    )
    folder.source(config).mkdir(exist_ok=True)
    save(folder, config)  # last: its presence says that the folder is whole
    return config


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    if path.exists():
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (ValueError, TypeError) as error:  # TypeError: it is encrypted
            raise ConfigError(f"{path} cannot be read as a key; remove it and enrol again") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ConfigError(f"{path} holds another kind of key than P-256; remove it and enrol again")
        return key
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.parent.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, pem)
    return key


def _request(key: ec.EllipticCurvePrivateKey, device: str) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def _post(url: str, ca: Path, request: Request) -> Answer:
    host, port = _address(url)
    connection = http.client.HTTPSConnection(host, port, timeout=30, context=server_tls(ca))
    try:
        body = msgspec.json.encode(request)
        connection.request("POST", "/v1/enrol", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read(_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise EnrolmentError(f"cannot reach the coordinator at {url}: {error}") from error
    finally:
        connection.close()
    if response.status >= 300:
        raise EnrolmentError(f"the coordinator refused ({response.status}): {_sentence(content)}")
    try:
        return msgspec.json.decode(content, type=Answer)
    except msgspec.DecodeError as error:
        raise EnrolmentError(f"the answer of {url} is no enrolment: {error}") from error


def _address(url: str) -> tuple[str, int]:
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port or 443
    except ValueError:  # a port that is no number, or half an IPv6 address
        host, port = None, 0
    if not host or parts.scheme != "https":
        raise ConfigError(f"--url {url}: use https://HOST:PORT, as the coordinator prints it")
    return host, port


def _sentence(content: bytes) -> str:
    try:
        answer: Any = json.loads(content)
        return str(answer["error"])[:500]
    except (ValueError, KeyError, TypeError):
        return "it gave no reason"


def _check(answer: Answer, key: ec.EllipticCurvePrivateKey, device: str) -> None:
    try:
        certificate = x509.load_pem_x509_certificate(answer.certificate.encode())
        base64.b64decode(answer.root, validate=True)
    except ValueError as error:
        raise EnrolmentError(f"the coordinator's answer cannot be read: {error}") from error
    names = [attribute.value for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if certificate.public_key() != key.public_key() or names != [device]:
        raise EnrolmentError(f"the coordinator gave a certificate for {names}, not for this device's key and name")
