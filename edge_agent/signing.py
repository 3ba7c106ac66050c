"""Sign a few bytes with the device's key, in a child process that takes the 10 MB of `cryptography` away with it.

`python -m edge_agent.signing KEY` reads the payload from standard input and writes the signature to standard output.
"""

import subprocess
import sys
from pathlib import Path

from edge_agent.errors import ConfigError


def sign(key: Path, payload: bytes) -> bytes:
    """DER-encoded ECDSA signature of `payload` (`contract.signatures`), made by a child.

    Raises:
        ConfigError: the key is missing or no P-256 key.
    """
    command = [sys.executable, "-P", "-m", "edge_agent.signing", str(key)]  # -P: no code from the working folder
    child = subprocess.run(command, input=payload, capture_output=True, check=False)
    if child.returncode or not child.stdout:
        complaint = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ConfigError(f"{key}: cannot sign with it ({complaint[:200]}); enrol this device again")
    return child.stdout


def main() -> None:
    """The child."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from contract import signatures

    key = load_pem_private_key(Path(sys.argv[1]).read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("not an elliptic-curve key")
    sys.stdout.buffer.write(signatures.sign(key, sys.stdin.buffer.read()))


if __name__ == "__main__":
    main()
