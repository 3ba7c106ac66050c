"""The device's key and certificate, and its root of trust."""

import json
from datetime import UTC, datetime
from pathlib import Path

from edge_agent.certificate import public_key
from edge_agent.doctor.examination import Finding, Patient, broken, fine, worrying
from edge_agent.errors import ConfigError

_ENROL = (
    "enrol this device anew: ask for a token (fieldfare devices add NAME --again), and run edge-agent enrol --again"
)
_SOON = 0.2  # of a certificate's life: what renews by itself has renewed before


def certificate(patient: Patient) -> Finding:
    """Whether key, certificate, authority and clock fit together."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.x509.oid import NameOID

    folder = patient.folder
    try:
        mine = x509.load_pem_x509_certificate(_read(folder.certificate))
        authorities = x509.load_pem_x509_certificates(_read(folder.ca))
    except (OSError, ValueError) as error:
        return broken("certificate", _sentence(error, folder.certificate.parent), _ENROL)
    try:
        key = public_key(folder.key)
    except ConfigError as error:
        return broken("certificate", str(error), _ENROL)
    if key != mine.public_key():
        return broken("certificate", f"{folder.certificate} is of another key than {folder.key}", _ENROL)
    names = [str(attribute.value) for attribute in mine.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    device = patient.checked.values.get("device")
    if names != [device]:
        return broken("certificate", f"the certificate is of {names}, agent.toml says {device!r}", _ENROL)
    signed = False
    for authority in authorities:
        try:
            mine.verify_directly_issued_by(authority)
            signed = True
        except (ValueError, TypeError, InvalidSignature):
            continue
    if not signed:
        return broken("certificate", f"{folder.certificate} is not signed by {folder.ca}", _ENROL)
    return _validity(mine.not_valid_before_utc, mine.not_valid_after_utc, datetime.fromtimestamp(patient.now, UTC))


def _validity(start: datetime, end: datetime, now: datetime) -> Finding:
    days = (end - now).total_seconds() / 86400
    if now < start:
        return broken(
            "certificate", f"valid from {start:%Y-%m-%d}, the clock says {now:%Y-%m-%d}", "set the clock of this device"
        )
    if now > end:
        return broken("certificate", f"expired on {end:%Y-%m-%d %H:%M} UTC", f"if the clock is right: {_ENROL}")
    if days < _SOON * (end - start).total_seconds() / 86400:
        return worrying(
            "certificate",
            f"expires in {days:.1f} days and was not renewed",
            "check the finding `coordinator`: the agent renews by itself once it reaches the API at `url`",
        )
    return fine("certificate", f"valid for {days:.0f} days")


def trust(patient: Patient) -> Finding:
    """Whether the root of trust from enrolment is there."""
    path = patient.folder.tuf_root
    try:
        signed = json.loads(_read(path))["signed"]
        return fine("trust", f"root of trust version {signed['version']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return broken("trust", _sentence(error, path), "without it no bundle can be verified; " + _ENROL)


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _sentence(error: Exception, path: Path) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return f"{path} cannot be read as what it should be: {error}"
