"""Sign a few bytes with the device's key, in a child process that takes the 10 MB of `cryptography` away with it.

A key that lives in a token signs there (`edge_agent.token_key`).

`python -m edge_agent.signing KEY` reads the payload from standard input and writes the signature to standard output;
`python -m edge_agent.signing KEY DEVICE AUDIENCE NOT_AFTER` writes a device token.
"""

import subprocess
import sys
import time
from pathlib import Path

from edge_agent import token_key
from edge_agent.config import Folder, load
from edge_agent.errors import ConfigError, UnavailableError

TOKEN_S = 600.0  # a token's life: long enough for clocks that differ, short enough to be worth nothing in an old log


def sign(key: Path, payload: bytes) -> bytes:
    """DER-encoded ECDSA signature of `payload` (`contract.signatures`), made by a child.

    Raises:
        ConfigError: the key is missing or no P-256 key.
        UnavailableError: the child cannot be started now.
    """
    return _child(key, payload=payload)


def token(folder: Folder, audience: str, *, lasts_s: float = TOKEN_S) -> str:
    """A token with which this device signs HTTPS requests for one purpose; it may be used again while it lasts.

    The header is `Authorization: Fieldfare-Device TOKEN`.

    Args:
        folder: of the agent.
        audience: the purpose, for example `blobs`; the coordinator takes the token for no other.
        lasts_s: seconds by this device's clock; at most `contract.limits.TOKEN_LIFE_S`.

    Raises:
        ConfigError: no agent there, the key is missing or no P-256 key, or there is no such audience.
        UnavailableError: the child cannot be started now.
    """
    not_after = time.time() + lasts_s
    return _child(folder.key, load(folder).device, audience, repr(not_after)).decode()


def _child(key: Path, *arguments: str, payload: bytes = b"") -> bytes:
    command = [sys.executable, "-P", "-m", "edge_agent.signing", str(key), *arguments]  # -P: no code from where we are
    try:
        child = subprocess.run(command, input=payload, capture_output=True, check=False)
    except OSError as error:  # no memory for it, or too many processes
        raise UnavailableError(f"the process that signs cannot be started: {error}") from error
    if child.returncode or not child.stdout:
        complaint = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ConfigError(f"{key}: cannot sign with it ({complaint[:200]}); enrol this device again")
    return child.stdout


def main() -> None:
    """The child."""
    from contract import signatures

    match sys.argv[2:]:
        case [device, audience, not_after]:
            payload = signatures.token_payload(device, audience, float(not_after))
            made = signatures.join_token(payload, _sign(Path(sys.argv[1]), payload)).encode()
        case _:
            made = _sign(Path(sys.argv[1]), sys.stdin.buffer.read())
    sys.stdout.buffer.write(made)


def _sign(path: Path, payload: bytes) -> bytes:
    if name := token_key.uri(path):
        return token_key.sign(name, payload)
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from contract import signatures

    key = load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("not an elliptic-curve key")
    return signatures.sign(key, payload)


if __name__ == "__main__":
    main()
