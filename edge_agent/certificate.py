"""The device's certificate: read, checked, replaced, in a child process that takes `cryptography` away with it.

`python -m edge_agent.certificate FOLDER show` says from when to when it is good; `install` takes a new one from
standard input, `fetch` gets one from the coordinator over HTTPS. The answer is an `Outcome` as JSON on standard output.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from edge_agent import signing, token_key
from edge_agent.config import Folder, load
from edge_agent.errors import AgentError, ConfigError, EnrolmentError, UnavailableError
from edge_agent.files import write_atomically

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
    from cryptography.x509 import Certificate

Act = Literal["show", "install", "fetch"]
AUDIENCE = "renew"
CHILD_S = 120.0


class Validity(msgspec.Struct, frozen=True):
    """From when to when a certificate is good, in seconds since the epoch."""

    begins: float
    ends: float

    @property
    def due(self) -> float:
        """When to renew it: a third of its life is left."""
        return self.ends - (self.ends - self.begins) / 3


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the child answers: the validity of the certificate that is in the folder now, or what went wrong."""

    validity: Validity | None = None
    problem: str = ""
    kind: Literal["", "config", "refused", "unavailable"] = ""


_ERRORS: dict[str, type[AgentError]] = {
    "config": ConfigError,
    "refused": EnrolmentError,
    "unavailable": UnavailableError,
}


def ask(root: Path, act: Act, pem: bytes = b"", *, give_up: Callable[[], bool] = lambda: False) -> Validity:
    """Have a child look at the certificate, or replace it.

    Args:
        root: the agent's folder.
        act: see the module.
        pem: the new certificate, for `install`.
        give_up: asked now and then whether to end the child.

    Returns:
        The validity of the certificate that is in the folder afterwards.

    Raises:
        ConfigError: certificate or key cannot be read.
        EnrolmentError: the coordinator refused, or gave a certificate that is not for this device.
        UnavailableError: the coordinator cannot be reached.
    """
    command = [sys.executable, "-P", "-m", "edge_agent.certificate", str(root), act]  # -P: no code from where we are
    try:
        outcome = msgspec.json.decode(_run(command, pem, give_up), type=Outcome)
    except msgspec.DecodeError as error:
        raise UnavailableError("the child that looks at the certificate gave no answer") from error
    if outcome.validity is None:
        raise _ERRORS.get(outcome.kind, UnavailableError)(outcome.problem)
    return outcome.validity


def _run(command: list[str], given: bytes, give_up: Callable[[], bool]) -> bytes:
    deadline = time.monotonic() + CHILD_S
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    waiting: bytes | None = given
    with child:
        while True:
            try:
                return child.communicate(waiting, timeout=0.2)[0]
            except subprocess.TimeoutExpired:
                waiting = None
                if give_up() or time.monotonic() > deadline:
                    child.kill()
                    return child.communicate()[0]


def install(folder: Folder, device: str, pem: bytes) -> Validity:
    """Check a new certificate for the key that this device has, and put it into the place of the old one.

    Raises:
        ConfigError: the key or the authority cannot be read.
        EnrolmentError: it is not for this device's name and key, or not from its authority.
    """
    try:
        authority = folder.ca.read_bytes()
    except OSError as error:
        raise ConfigError(f"{folder.ca}: the authority cannot be read: {error}") from error
    certificate = checked(pem, public_key(folder.key), device, authority)
    write_atomically(folder.certificate, pem)
    return _validity(certificate)


def public_key(path: Path) -> "PublicKeyTypes":
    """The public key of a key file, be it in the file or in a token.

    Raises:
        ConfigError: it cannot be read.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

    try:
        if name := token_key.uri(path):
            return load_pem_public_key(token_key.public_key(name))
        return load_pem_private_key(path.read_bytes(), password=None).public_key()
    except (OSError, ValueError, TypeError) as error:  # TypeError: it is encrypted
        raise ConfigError(f"{path} cannot be read as a key: {error}") from error


def checked(pem: bytes, key: object, device: str, authority_pem: bytes) -> "Certificate":
    """Read a certificate that must be for this name and this public key, signed by this authority.

    Raises:
        EnrolmentError: it is not.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        certificate = x509.load_pem_x509_certificate(pem)
        authority = x509.load_pem_x509_certificate(authority_pem)
    except ValueError as error:
        raise EnrolmentError(f"the coordinator's answer cannot be read: {error}") from error
    names = [str(attribute.value) for attribute in certificate.subject]
    if certificate.public_key() != key or names != [device]:
        raise EnrolmentError(f"the coordinator gave a certificate for {names}, not for this device's key and name")
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise EnrolmentError("the coordinator gave a certificate that its own authority has not signed") from error
    return certificate


def show(folder: Folder) -> Validity:
    """The validity of the certificate in a folder.

    Raises:
        ConfigError: it cannot be read.
    """
    from cryptography import x509

    try:
        return _validity(x509.load_pem_x509_certificate(folder.certificate.read_bytes()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder.certificate} cannot be read; enrol this device again ({error})") from error


def fetch(folder: Folder) -> Validity:
    """Get a new certificate over HTTPS, with a token that the device's key signs; errors as `ask`."""
    from contract.signatures import SCHEME
    from edge_agent import https

    config = load(folder)
    token = signing.token(folder, AUDIENCE)
    answer = https.post(config.url, folder.ca, "/v1/renew", headers={"Authorization": f"{SCHEME} {token}"})
    if answer.status in {401, 403, 404, 422}:
        raise EnrolmentError(f"the coordinator refused ({answer.status}): {answer.sentence}")
    if answer.status >= 300:
        raise UnavailableError(f"the coordinator failed ({answer.status}): {answer.sentence}")
    try:
        pem = msgspec.json.decode(answer.content, type=dict[str, str])["certificate"]
    except (msgspec.DecodeError, KeyError) as error:
        raise UnavailableError(f"the answer of {config.url} is no certificate") from error
    return install(folder, config.device, pem.encode())


def _validity(certificate: "Certificate") -> Validity:
    return Validity(certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp())


def main() -> None:
    """The child."""
    folder, act = Folder(Path(sys.argv[1])), sys.argv[2]
    try:
        match act:
            case "install":
                outcome = Outcome(validity=install(folder, load(folder).device, sys.stdin.buffer.read()))
            case "fetch":
                outcome = Outcome(validity=fetch(folder))
            case _:
                outcome = Outcome(validity=show(folder))
    except ConfigError as error:
        outcome = Outcome(problem=str(error), kind="config")
    except EnrolmentError as error:
        outcome = Outcome(problem=str(error), kind="refused")
    except (UnavailableError, OSError) as error:
        outcome = Outcome(problem=str(error), kind="unavailable")
    sys.stdout.buffer.write(msgspec.json.encode(outcome))


if __name__ == "__main__":
    main()
