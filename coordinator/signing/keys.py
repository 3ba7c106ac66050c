"""Keys that sign metadata, in files: plain or encrypted PEM (Ed25519 or P-256), or a reference to one in a token.

A key `NAME` is `NAME.pem`, or `NAME.hsm` that says where in which PKCS#11 token it lives; `NAME.pub` beside it is its
public half, which may be handed to anybody.
"""

import re
from pathlib import Path

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key, Signer

from coordinator.errors import InvalidError, SetupError
from coordinator.files import write_private
from coordinator.signing.secrets import Ask, nobody

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def create(folder: Path, name: str, *, passphrase: str | None) -> Key:
    """Make an Ed25519 key; encrypted (PKCS#8, scrypt or PBKDF2 as `cryptography` chooses) where there is a passphrase.

    Raises:
        SetupError: there is such a key already, or no name for one.
    """
    claim(folder, name)
    path = folder / f"{name}.pem"
    private = Ed25519PrivateKey.generate()
    lock = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    write_private(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    key = CryptoSigner(private).public_key
    write_public(folder / f"{name}.pub", key)
    return key


def claim(folder: Path, name: str) -> None:
    """Make the folder for a new key.

    Raises:
        SetupError: there is such a key already, or no name for one.
    """
    if not _NAME.fullmatch(name):
        raise SetupError(f"key name {name[:80]!r}: use lower-case letters, digits, '.', '_' and '-'")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in (folder / f"{name}.pem", folder / f"{name}.hsm"):
        if path.exists():
            raise SetupError(f"{path}: this key exists already")


def ensure(folder: Path, name: str) -> CryptoSigner:
    """Load the plain key `name`, or make it where it is missing; errors as in `load`."""
    if not (folder / f"{name}.pem").exists():
        create(folder, name, passphrase=None)
    return _from_pem(folder / f"{name}.pem", nobody)


def online(folder: Path, role: str) -> list[CryptoSigner]:
    """A coordinator's own keys for an online role, oldest first; the first is made where there is none."""
    ensure(folder, role)
    found = sorted(folder.glob(f"{role}-*.pem"), key=lambda path: (len(path.name), path.name))
    return [_from_pem(path, nobody) for path in (folder / f"{role}.pem", *found)]


def renew_online(folder: Path, role: str) -> Key:
    """One more key for an online role, used from the moment at which a root names it."""
    return create(folder, f"{role}-{len(online(folder, role)) + 1}", passphrase=None)


def load(folder: Path, name: str, ask: Ask = nobody) -> Signer:
    """A key that can sign.

    Args:
        folder: of the keys.
        name: of the key.
        ask: gives the passphrase or PIN where one is needed.

    Raises:
        SetupError: no such key, a wrong passphrase, or a file that holds no such key.
    """
    reference = folder / f"{name}.hsm"
    if reference.exists():
        from coordinator.signing import tokens

        return tokens.load(reference, public(folder / f"{name}.pub"), ask)
    return _from_pem(folder / f"{name}.pem", ask)


def names(folder: Path) -> dict[str, str]:
    """Key id to name of every key in a folder that can sign."""
    paths = [path for path in sorted(folder.glob("*.pub")) if _private(path).exists()]
    return {public(path).keyid: path.stem for path in paths}


def _private(public_file: Path) -> Path:
    reference = public_file.with_suffix(".hsm")
    return reference if reference.exists() else public_file.with_suffix(".pem")


def write_public(path: Path, key: Key, *, mode: int = 0o600) -> None:
    """Write the public half of a key as JSON."""
    described = {"keyid": key.keyid, **key.to_dict()}
    write_private(path, msgspec.json.format(msgspec.json.encode(described)) + b"\n", mode=mode)


def public(path: Path) -> Key:
    """Read the public half of a key.

    Raises:
        SetupError: no such file, or not a public key.
    """
    try:
        described = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
        return parse_public(described)
    except (OSError, msgspec.DecodeError, InvalidError) as error:
        raise SetupError(f"{path}: no readable public key ({error})") from error


def parse_public(described: dict[str, object]) -> Key:
    """A public key as `write_public` describes it.

    Raises:
        InvalidError: something else.
    """
    rest = dict(described)
    try:
        return Key.from_dict(str(rest.pop("keyid")), rest)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InvalidError(f"not a public key: {error}") from error


def _from_pem(path: Path, ask: Ask) -> CryptoSigner:
    try:
        content = path.read_bytes()
        passphrase = ask(f"passphrase of {path.stem}").encode() if b"ENCRYPTED" in content[:64] else None
        key = load_pem_private_key(content, passphrase)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SetupError(f"{path}: no readable private key ({error})") from error
    if isinstance(key, Ed25519PrivateKey) or (
        isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1)
    ):
        return CryptoSigner(key)
    raise SetupError(f"{path}: neither an Ed25519 nor a P-256 key")
