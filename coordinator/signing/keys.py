"""Ed25519 keys in a folder, one PEM file each, readable by their owner alone."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from coordinator.errors import SetupError
from coordinator.files import write_private


def ensure(folder: Path, name: str) -> CryptoSigner:
    """Load the key `name`, or make it where it is missing.

    Raises:
        SetupError: a file that holds no Ed25519 key.
    """
    path = folder / f"{name}.pem"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        write_private(path, CryptoSigner.generate_ed25519().private_bytes)
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise SetupError(f"{path}: no readable private key ({error})") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SetupError(f"{path}: not an Ed25519 key")
    return CryptoSigner(key)
