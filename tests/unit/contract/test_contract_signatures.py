import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from contract import codec, limits, signatures
from contract.errors import MalformedError, SignatureError, TopicError, WireError

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


@given(st.from_regex(r"[a-z]{1,16}", fullmatch=True), st.floats(0, 1e10))
def test_a_token_is_read_as_it_was_issued_and_verifies(audience: str, not_after: float) -> None:
    token, payload, signature = signatures.read_token(signatures.issue_token(KEY, "meter-1", audience, not_after))
    assert token == signatures.DeviceToken(device="meter-1", audience=audience, not_after=not_after)
    signatures.verify(CERTIFICATE, payload, signature)


@given(st.text(max_size=400) | st.binary(max_size=200).map(lambda content: f"{signatures._text(content)}.AAAA"))
def test_no_text_that_is_no_token_is_read(text: str) -> None:
    with pytest.raises(WireError):
        signatures.read_token(text)


@given(st.data())
def test_a_token_with_a_changed_character_does_not_verify(data: st.DataObject) -> None:
    issued = signatures.issue_token(KEY, "meter-1", "blobs", 1e9)
    place = data.draw(st.integers(0, issued.index(".") - 2))  # the last may hold bits that belong to no byte
    sign = data.draw(st.sampled_from("ABCxyz019-_"))
    changed = issued[:place] + sign + issued[place + 1 :]
    if changed != issued:
        with pytest.raises(WireError):
            signatures.verify(CERTIFICATE, *signatures.read_token(changed)[1:])


def test_a_token_that_is_too_long_is_not_decoded_and_odd_names_are_refused() -> None:
    with pytest.raises(MalformedError, match=f"at most {limits.TOKEN_BYTES}"):
        signatures.read_token("A" * (limits.TOKEN_BYTES + 1))
    with pytest.raises(MalformedError, match="audience"):
        signatures.issue_token(KEY, "meter-1", "Blobs!", 0.0)
    with pytest.raises(TopicError):
        signatures.issue_token(KEY, "coordinator", "blobs", 0.0)
    forged = codec.encode(signatures.DeviceToken(device="../x", audience="blobs", not_after=0.0))
    with pytest.raises(TopicError):
        signatures.read_token(f"{signatures._text(forged)}.{signatures._text(signatures.sign(KEY, forged))}")
