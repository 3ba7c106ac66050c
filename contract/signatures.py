"""Device signatures: ECDSA over P-256 with SHA-256, on the bytes as sent. Verify before parsing."""

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from contract.errors import SignatureError

_ALGORITHM = ec.ECDSA(hashes.SHA256())


def sign(key: ec.EllipticCurvePrivateKey, payload: bytes) -> bytes:
    """Sign `payload` with a device's own key; DER-encoded."""
    return key.sign(payload, _ALGORITHM)


def verify(certificate_pem: bytes, payload: bytes, signature: bytes) -> None:
    """Check a signature with the public key of a device's certificate.

    Raises:
        SignatureError: another key signed it, or other bytes, or the certificate holds no P-256 key.
    """
    try:
        key = x509.load_pem_x509_certificate(certificate_pem).public_key()
    except ValueError as error:
        raise SignatureError("the device's certificate cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SignatureError("the device's certificate holds no P-256 key")
    try:
        key.verify(signature, payload, _ALGORITHM)
    except InvalidSignature as error:
        raise SignatureError("the signature does not verify with the device's key") from error
