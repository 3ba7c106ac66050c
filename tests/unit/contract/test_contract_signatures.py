import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from contract import signatures
from contract.errors import SignatureError

KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "meter-1")])
    now = dt.datetime.now(dt.UTC)
    algorithm = hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, algorithm)
        .public_bytes(serialization.Encoding.PEM)
    )


CERTIFICATE = certificate(KEY)


@given(st.binary(max_size=100))
def test_what_a_device_signs_verifies_with_its_certificate(payload: bytes) -> None:
    signatures.verify(CERTIFICATE, payload, signatures.sign(KEY, payload))


@given(st.binary(min_size=1, max_size=50), st.data())
def test_other_bytes_do_not_verify(payload: bytes, data: st.DataObject) -> None:
    signature = signatures.sign(KEY, payload)
    changed = bytearray(payload)
    changed[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SignatureError):
        signatures.verify(CERTIFICATE, bytes(changed), signature)


@given(st.binary(max_size=80))
def test_no_bytes_pass_for_a_signature(signature: bytes) -> None:
    with pytest.raises(SignatureError):
        signatures.verify(CERTIFICATE, b"payload", signature)


def test_another_devices_signature_is_refused() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(SignatureError):
        signatures.verify(CERTIFICATE, b"payload", signatures.sign(other, b"payload"))


@pytest.mark.parametrize("pem", [b"", b"not a certificate", certificate(ed25519.Ed25519PrivateKey.generate())])
def test_a_certificate_without_a_p256_key_is_refused(pem: bytes) -> None:
    with pytest.raises(SignatureError):
        signatures.verify(pem, b"payload", signatures.sign(KEY, b"payload"))


def test_a_key_on_another_curve_is_refused_though_its_signature_holds() -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(SignatureError, match="no P-256 key"):
        signatures.verify(certificate(other), b"payload", signatures.sign(other, b"payload"))
