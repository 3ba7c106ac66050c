"""The fleet's certificates: one authority (P-256, X.509), the servers' certificates, and one for each device.

A certificate's common name is the identity of its holder everywhere: at the broker, in topics, in receipts.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from contract import topics
from coordinator.errors import InvalidError, SetupError
from coordinator.files import write_private

FOLDER = "pki"
CA_DAYS = 3650
SERVER_DAYS = 825
CRL_DAYS = 30  # of the empty list that a new folder gets; the coordinator's own follows
CRL = "crl.pem"
CSR_BYTES = 8 * 1024
_BACKDATE = timedelta(minutes=5)  # a device's clock may be a little behind ours


@dataclass(frozen=True)
class Authority:
    """The certificate authority: signs requests, and lends its certificate to whoever must know it."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def load(cls, state: Path) -> "Authority":
        """Read the authority of a coordinator's state folder.

        Raises:
            SetupError: the files are missing or unreadable.
        """
        folder = state / FOLDER
        try:
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
            certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        except (OSError, ValueError) as error:
            raise SetupError(f"{folder}: no readable certificate authority ({error}); run: fieldfare serve") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise SetupError(f"{folder / 'ca.key'} holds no elliptic-curve key")
        return cls(key, certificate)

    @property
    def ca_pem(self) -> bytes:
        """The authority's certificate."""
        return _pem(self.certificate)

    def sign_csr(self, csr_pem: bytes, name: str, *, days: int, now: datetime) -> bytes:
        """Sign a device's request; only its public key is taken over, everything else is ours to say.

        Args:
            csr_pem: PKCS#10 request in PEM, with the device's own signature.
            name: the device that the enrolment token stands for.
            days: validity.
            now: time zone aware.

        Returns: the certificate in PEM, for client authentication alone.

        Raises:
            TopicError: `name` cannot be a device.
            InvalidError: not a request, not for this device, not P-256, or not signed with its own key.
        """
        topics.check_device(name)
        key = _checked_key(csr_pem, name)
        return _pem(self.issue(key, name, usage=ExtendedKeyUsageOID.CLIENT_AUTH, lasts=timedelta(days=days), now=now))

    def renew(self, certificate_pem: bytes, name: str, *, days: int, now: datetime) -> bytes:
        """A certificate for the same device and the same key, from now on; errors as in `sign_csr`."""
        topics.check_device(name)
        key = x509.load_pem_x509_certificate(certificate_pem).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise InvalidError(f"the certificate of {name} holds no elliptic-curve key; enrol the device again")
        return _pem(self.issue(key, name, usage=ExtendedKeyUsageOID.CLIENT_AUTH, lasts=timedelta(days=days), now=now))

    def crl(self, revoked: Mapping[int, datetime], *, lasts: timedelta, now: datetime) -> bytes:
        """The list of revoked certificates in PEM.

        Args:
            revoked: since when, by serial number.
            lasts: a broker that has no newer list by then lets nobody in any more.
            now: time zone aware.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - _BACKDATE)
            .next_update(now + lasts)
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        for serial, since in sorted(revoked.items()):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        key: ec.EllipticCurvePublicKey,
        name: str,
        *,
        usage: x509.ObjectIdentifier,
        lasts: timedelta,
        now: datetime,
        alternatives: tuple[x509.GeneralName, ...] = (),
    ) -> x509.Certificate:
        """Sign a certificate for a key that the caller has checked."""
        builder = (
            _builder(name, self.certificate.subject, key, lasts, now)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return builder.sign(self.key, hashes.SHA256())


def create(state: Path, now: datetime | None = None, *, host: str = "127.0.0.1") -> None:
    """Make what is missing of `pki/`: the authority, server certificates, the coordinator's client certificate.

    Server certificates are good for this machine and for `host`; they are made again where it has changed, or where a
    third of their time is left.
    """
    now = now or datetime.now(UTC)
    folder = state / FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (folder / "ca.crt").exists():
        authority = _authority(now)
        _write_pair(folder, "ca", authority.key, authority.certificate)
    authority = Authority.load(state)
    local = tuple(dict.fromkeys(_host(name) for name in ("localhost", "127.0.0.1", host)))
    for name, usage, alternatives in (
        ("broker", ExtendedKeyUsageOID.SERVER_AUTH, local),
        ("api", ExtendedKeyUsageOID.SERVER_AUTH, local),
        (topics.COORDINATOR, ExtendedKeyUsageOID.CLIENT_AUTH, ()),
    ):
        if not _is_good(folder / f"{name}.crt", alternatives, now):
            _issue_pair(folder, authority, name, usage=usage, alternatives=alternatives, now=now)
    if not (folder / CRL).exists():
        write_private(folder / CRL, authority.crl({}, lasts=timedelta(days=CRL_DAYS), now=now), mode=0o644)


def issue_server(authority: Authority, folder: Path, name: str, *, hosts: tuple[str, ...], now: datetime) -> None:
    """Write `NAME.key` and `NAME.crt` of a server that is reached by these names and addresses."""
    alternatives = tuple(dict.fromkeys(_host(host) for host in hosts))
    usage = ExtendedKeyUsageOID.SERVER_AUTH
    _issue_pair(folder, authority, name, usage=usage, alternatives=alternatives, now=now)


def _issue_pair(
    folder: Path,
    authority: Authority,
    name: str,
    *,
    usage: x509.ObjectIdentifier,
    alternatives: tuple[x509.GeneralName, ...],
    now: datetime,
) -> None:
    key, lasts = ec.generate_private_key(ec.SECP256R1()), timedelta(days=SERVER_DAYS)
    certificate = authority.issue(key.public_key(), name, usage=usage, lasts=lasts, now=now, alternatives=alternatives)
    _write_pair(folder, name, key, certificate)


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _is_good(path: Path, alternatives: tuple[x509.GeneralName, ...], now: datetime) -> bool:
    """Whether there is a certificate that names these hosts, with more than a third of its time left."""
    if not path.exists():
        return False
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    if now > certificate.not_valid_after_utc - timedelta(days=SERVER_DAYS / 3):
        return False
    values = [extension.value for extension in certificate.extensions]
    found = [value for value in values if isinstance(value, x509.SubjectAlternativeName)]
    return set(alternatives) <= {name for names in found for name in names}


def same_key(one_pem: bytes, other_pem: bytes) -> bool:
    """Whether two certificates are for one key."""
    one, other = (x509.load_pem_x509_certificate(pem) for pem in (one_pem, other_pem))
    return one.public_key() == other.public_key()


def serial(certificate_pem: bytes) -> int:
    """A certificate's serial number, which no other certificate of the authority has."""
    return x509.load_pem_x509_certificate(certificate_pem).serial_number


def validity(certificate_pem: bytes) -> tuple[float, float]:
    """When a certificate begins and ends, in seconds since the epoch."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()


def revoked_serials(crl_pem: bytes) -> frozenset[int]:
    """Serial numbers on a list of revoked certificates.

    Raises:
        ValueError: no such list.
    """
    return frozenset(entry.serial_number for entry in x509.load_pem_x509_crl(crl_pem))


def _authority(now: datetime) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = "fieldfare authority"
    certificate = (
        _builder(name, _name(name), key.public_key(), timedelta(days=CA_DAYS), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signature=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(key, certificate)


def _checked_key(csr_pem: bytes, name: str) -> ec.EllipticCurvePublicKey:
    if len(csr_pem) > CSR_BYTES:
        raise InvalidError(f"a certificate request of {len(csr_pem)} bytes; at most {CSR_BYTES}")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        signed = request.is_signature_valid
        names = [attribute.value for attribute in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidError("the certificate request cannot be read; send PKCS#10 in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidError("the certificate request must hold a P-256 key")
    if not signed:
        raise InvalidError("the certificate request is not signed with its own key")
    if names != [name] or len(list(request.subject)) != 1:
        raise InvalidError(f"the certificate request must name {name!r} and nothing else")
    return key


def _builder(
    name: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey, lasts: timedelta, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + lasts)
    )


def _key_usage(*, signature: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not signature,
        crl_sign=not signature,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_pair(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    # The key first: where the certificate is, its key is too.
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(folder / f"{name}.key", pem)
    write_private(folder / f"{name}.crt", _pem(certificate), mode=0o644)
