"""Device signatures: ECDSA over P-256 with SHA-256, on the bytes as sent. Verify before parsing.

A device signs receipts, and tokens for HTTPS requests: `Authorization: Fieldfare-Device TOKEN`, where TOKEN is
base64url(msgpack(DeviceToken)) + "." + base64url(signature over those very bytes), without padding.
"""

import base64
import binascii
import re

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from contract import codec, limits, topics
from contract.errors import MalformedError, SignatureError

SCHEME = "Fieldfare-Device"  # of the Authorization header

_ALGORITHM = ec.ECDSA(hashes.SHA256())
_AUDIENCE = re.compile(r"[a-z]{1,16}")


class DeviceToken(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="device-token"):
    """A device's word that it is the sender of a request.

    Attributes:
        device: who.
        audience: the one purpose that the token serves, for example `blobs` or `renew`; 1 to 16 lower-case letters.
        not_after: seconds since the epoch; at most `limits.TOKEN_LIFE_S` away.
    """

    device: str
    audience: str
    not_after: float


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


def issue_token(key: ec.EllipticCurvePrivateKey, device: str, audience: str, not_after: float) -> str:
    """Sign a token with the device's own key.

    Raises:
        TopicError: no name for a device.
        MalformedError: no name for an audience.
    """
    payload = token_payload(device, audience, not_after)
    return join_token(payload, sign(key, payload))


def token_payload(device: str, audience: str, not_after: float) -> bytes:
    """The bytes of a token that are to be signed; errors as `issue_token`."""
    return codec.encode(_checked(DeviceToken(device=device, audience=audience, not_after=not_after)))


def join_token(payload: bytes, signature: bytes) -> str:
    """The token of a payload and its signature."""
    return f"{_text(payload)}.{_text(signature)}"


def read_token(text: str) -> tuple[DeviceToken, bytes, bytes]:
    """Take a token apart; the signature is NOT checked: give the last two to `verify` with the device's certificate.

    Returns:
        What it claims, the bytes that were signed, and the signature.

    Raises:
        MalformedError: longer than `limits.TOKEN_BYTES`, or no token.
        TopicError: the name in it is no device's.
    """
    if len(text) > limits.TOKEN_BYTES:
        raise MalformedError(f"a device token of {len(text)} characters; at most {limits.TOKEN_BYTES}")
    first, dot, second = text.partition(".")
    if not dot:
        raise MalformedError("not a device token: it has no dot between payload and signature")
    payload, signature = _bytes(first), _bytes(second)
    return _checked(codec.decode(payload, DeviceToken, limit=limits.TOKEN_BYTES)), payload, signature


def _checked(token: DeviceToken) -> DeviceToken:
    topics.check_device(token.device)
    if not _AUDIENCE.fullmatch(token.audience):
        raise MalformedError(f"audience {token.audience[:32]!r}: use 1 to 16 lower-case letters")
    return token


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: characters beyond ASCII
        raise MalformedError("not a device token: not base64url") from error
