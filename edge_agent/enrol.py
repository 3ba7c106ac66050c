"""Enrolment: a key that never leaves the device, a request signed with it, and a one-time token for a certificate."""

import base64
import json
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from contract import topics
from contract.errors import TopicError
from edge_agent import https, token_key
from edge_agent.certificate import checked, public_key
from edge_agent.config import Config, Folder, load, save
from edge_agent.errors import ConfigError, EnrolmentError, UnavailableError
from edge_agent.files import remove, write_atomically
from edge_agent.identity import settle
from edge_agent.status import is_running


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


def enrol(root: Path, *, device: str, url: str, ca: Path, token: str, hardware_class: str, key_uri: str = "") -> Config:
    """Enrol this device and write its folder; a try that failed half-way may be repeated with a new token.

    Args:
        root: the agent's folder; made if missing.
        device: name as the coordinator knows it.
        url: of the coordinator's API, `https://host:port`.
        ca: the only certificate authority that is trusted to be the coordinator.
        token: one-time token.
        hardware_class: bundles may be made for some classes only.
        key_uri: of a P-256 key that is in a PKCS#11 token already; empty: the key is made here, in a file.

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
        raise ConfigError(
            f"{root} is enrolled already; choose another --state, or with a new token: edge-agent enrol --again"
        )
    if key_uri:
        _name_key(folder.key, key_uri)
    else:
        _make_key(folder.key)
    csr = _request(folder.key, device)
    answer = _ask(url, ca, folder.key, Request(token=token, csr=csr, hardware_class=hardware_class), device)
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
    folder.source(config).mkdir(exist_ok=True, mode=0o700)
    save(folder, config)  # last: its presence says that the folder is whole
    return config


def enrol_again(
    root: Path,
    *,
    token: str,
    url: str | None = None,
    ca: Path | None = None,
    new_key: bool = False,
    key_uri: str = "",
) -> Config:
    """Enrol a device anew that is in the folder already: its certificate has expired, or it was revoked.

    Everything else stays: models, outbox, counters, root of trust, and what `agent.toml` says, but for the addresses.

    Args:
        root: the agent's folder; no agent may run in it.
        token: one-time token (`fieldfare devices add NAME --again`).
        url: of the coordinator's API; None: as before.
        ca: authority of the coordinator; None: as before.
        new_key: make a new key, which a revoked device must. Old key and certificate stay until the new ones are whole.
        key_uri: of the key in a token to use from now on.

    Returns:
        The configuration, with the addresses of now.

    Raises:
        ConfigError: no agent in the folder, or it runs, or no URL is known.
        EnrolmentError: the coordinator refused or cannot be reached; everything is as before.
    """
    folder = Folder(root)
    config = load(folder)
    if is_running(folder.lock):
        raise ConfigError(f"{root}: an agent runs in this folder; stop it first")
    settle(folder)
    url = url or config.url
    if not url:
        raise ConfigError(f"{folder.config} has no url; give --url https://HOST:PORT")
    key = folder.new_key if new_key or key_uri else folder.key
    if key is folder.key:
        remove(folder.new_key)  # of a try that failed: the certificate will not be for it
    if key_uri:
        _name_key(key, key_uri)
    else:
        _make_key(key)
    request = Request(token=token, csr=_request(key, config.device), hardware_class=config.hardware_class)
    answer = _ask(url, ca or folder.ca, key, request, config.device)
    write_atomically(folder.ca, answer.ca.encode())
    write_atomically(folder.new_certificate, answer.certificate.encode())  # from here on the new ones count
    settle(folder)
    now = msgspec.structs.replace(config, broker_host=answer.broker_host, broker_port=answer.broker_port, url=url)
    if now != config:
        save(folder, now)
    return now


def _ask(url: str, ca: Path, key: Path, request: Request, device: str) -> Answer:
    """Trade a token for a certificate, and check that it is for this device and its key."""
    try:
        told = https.post(url, ca, "/v1/enrol", msgspec.json.encode(request))
    except UnavailableError as error:
        raise EnrolmentError(str(error)) from error
    if told.status >= 300:
        raise EnrolmentError(f"the coordinator refused ({told.status}): {told.sentence}")
    try:
        answer = msgspec.json.decode(told.content, type=Answer)
        base64.b64decode(answer.root, validate=True)
    except (msgspec.DecodeError, ValueError) as error:
        raise EnrolmentError(f"the answer of {url} is no enrolment: {error}") from error
    checked(answer.certificate.encode(), public_key(key), device, answer.ca.encode())
    return answer


def _make_key(path: Path) -> None:
    """Make a key, unless a try that failed half-way has made it."""
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        form = serialization.PrivateFormat.PKCS8
        pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        path.parent.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, pem)


def _name_key(path: Path, key_uri: str) -> None:
    """Say where the key is, in place of one."""
    token_key.public_key(token_key.checked(key_uri))
    path.parent.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, f"{key_uri}\n".encode())


def _request(path: Path, device: str) -> str:
    public = public_key(path)
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise ConfigError(f"{path} holds another kind of key than P-256; use another, or remove it and enrol again")
    if key_uri := token_key.uri(path):
        return token_key.request(key_uri, device).decode()
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} holds no private key; remove it and enrol again")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()
