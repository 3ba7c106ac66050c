from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from contract.errors import TopicError
from coordinator import pki
from coordinator.errors import InvalidError, SetupError
from tests.fakes.broker_process import device_key_and_csr

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("state")
    pki.create(folder, NOW)
    return folder


def request(key: object, *names: tuple[x509.ObjectIdentifier, str]) -> bytes:
    subject = x509.Name([x509.NameAttribute(*name) for name in names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]


def test_keys_are_their_owners_alone_and_a_second_creation_changes_nothing(state: Path) -> None:
    before = {path.name: path.read_bytes() for path in (state / "pki").iterdir()}
    pki.create(state, NOW + timedelta(days=1))
    assert {path.name: path.read_bytes() for path in (state / "pki").iterdir()} == before
    pairs = {f"{name}.{end}" for name in ("ca", "broker", "api", "coordinator") for end in ("key", "crt")}
    assert set(before) == {*pairs, "crl.pem"}
    assert {path.stat().st_mode & 0o777 for path in (state / "pki").glob("*.key")} == {0o600}


def test_server_certificates_name_the_host_that_is_configured(tmp_path: Path) -> None:
    pki.create(tmp_path, NOW)
    ca = (tmp_path / "pki" / "ca.crt").read_bytes()
    for host in ("coordinator.example", "192.0.2.7"):
        pki.create(tmp_path, NOW, host=host)
        before = (tmp_path / "pki" / "api.crt").read_bytes()
        certificate = x509.load_pem_x509_certificate(before)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
        assert {host, "localhost", "127.0.0.1"} <= set(found)
        pki.create(tmp_path, NOW, host=host)
        assert (tmp_path / "pki" / "api.crt").read_bytes() == before
    assert (tmp_path / "pki" / "ca.crt").read_bytes() == ca


def test_a_device_certificate_names_the_device_and_serves_clients_only(state: Path) -> None:
    _, csr = device_key_and_csr("meter-1")
    certificate = x509.load_pem_x509_certificate(pki.Authority.load(state).sign_csr(csr, "meter-1", days=90, now=NOW))
    assert [part.value for part in certificate.subject] == ["meter-1"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.not_valid_after_utc == NOW + timedelta(days=90)
    ca = x509.load_pem_x509_certificate((state / "pki" / "ca.crt").read_bytes())
    certificate.verify_directly_issued_by(ca)


def test_a_request_that_is_not_exactly_for_this_device_is_refused(state: Path) -> None:
    authority = pki.Authority.load(state)
    key = ec.generate_private_key(ec.SECP256R1())
    good = request(key, (NameOID.COMMON_NAME, "meter-1"))
    forged = bytearray(x509.load_pem_x509_csr(good).public_bytes(serialization.Encoding.DER))
    forged[-1] ^= 1
    bad = {
        "another name": request(key, (NameOID.COMMON_NAME, "meter-2")),
        "two names": request(key, (NameOID.COMMON_NAME, "meter-1"), (NameOID.COMMON_NAME, "coordinator")),
        "more in the subject": request(key, (NameOID.COMMON_NAME, "meter-1"), (NameOID.ORGANIZATION_NAME, "x")),
        "no name": request(key),
        "another curve": request(ec.generate_private_key(ec.SECP384R1()), (NameOID.COMMON_NAME, "meter-1")),
        "RSA": request(rsa.generate_private_key(65537, 2048), (NameOID.COMMON_NAME, "meter-1")),
        "not PEM": b"hello",
        "DER": bytes(forged),
        "too large": b"x" * 10_000,
    }
    for what, csr in bad.items():
        with pytest.raises(InvalidError):
            raise AssertionError(what, authority.sign_csr(csr, "meter-1", days=1, now=NOW))


def test_a_request_signed_by_another_key_is_refused(state: Path) -> None:
    _, csr = device_key_and_csr("meter-1")
    der = bytearray(x509.load_pem_x509_csr(csr).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1  # the last byte of the signature
    pem = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(InvalidError, match="its own key"):
        pki.Authority.load(state).sign_csr(pem, "meter-1", days=1, now=NOW)


def test_the_coordinators_name_is_for_no_device(state: Path) -> None:
    _, csr = device_key_and_csr("coordinator")
    with pytest.raises(TopicError):
        pki.Authority.load(state).sign_csr(csr, "coordinator", days=1, now=NOW)


def test_server_certificates_are_made_again_before_they_expire(tmp_path: Path) -> None:
    pki.create(tmp_path, NOW)
    names = ("broker", "api", "coordinator")
    before = {name: (tmp_path / "pki" / f"{name}.crt").read_bytes() for name in names}
    pki.create(tmp_path, NOW + timedelta(days=pki.SERVER_DAYS * 0.6))
    assert {name: (tmp_path / "pki" / f"{name}.crt").read_bytes() for name in names} == before
    later = NOW + timedelta(days=pki.SERVER_DAYS * 0.7)
    pki.create(tmp_path, later)
    for name in names:
        end = pki.validity((tmp_path / "pki" / f"{name}.crt").read_bytes())[1]
        assert end == (later + timedelta(days=pki.SERVER_DAYS)).timestamp()


def test_a_renewed_certificate_is_for_the_same_name_and_key_with_a_new_number(state: Path) -> None:
    authority = pki.Authority.load(state)
    _, csr = device_key_and_csr("meter-1")
    first = authority.sign_csr(csr, "meter-1", days=30, now=NOW)
    later = NOW + timedelta(days=20)
    second = authority.renew(first, "meter-1", days=30, now=later)
    assert pki.same_key(first, second)
    assert pki.serial(first) != pki.serial(second)
    begin, end = later - timedelta(minutes=5), later + timedelta(days=30)
    assert pki.validity(second) == (begin.timestamp(), end.timestamp())
    assert [part.value for part in x509.load_pem_x509_certificate(second).subject] == ["meter-1"]


def test_the_list_of_revoked_certificates_is_signed_by_the_authority_and_lists_what_it_is_told(state: Path) -> None:
    authority = pki.Authority.load(state)
    content = authority.crl({7: NOW, 2**150: NOW}, lasts=timedelta(days=3), now=NOW)
    made = x509.load_pem_x509_crl(content)
    assert made.is_signature_valid(authority.certificate.public_key())  # type: ignore[arg-type]
    assert made.next_update_utc == NOW + timedelta(days=3)
    assert pki.revoked_serials(content) == {7, 2**150}
    assert pki.revoked_serials((state / "pki" / pki.CRL).read_bytes()) == frozenset()
    with pytest.raises(ValueError, match="PEM"):
        pki.revoked_serials(b"no list")


def test_a_missing_authority_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="fieldfare serve"):
        pki.Authority.load(tmp_path)
