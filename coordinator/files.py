"""Small files that matter: written whole or not at all, and secrets that are their owner's alone."""

import os
import tempfile
from pathlib import Path

from coordinator.errors import SetupError


def write_private(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file whole or not at all, readable by its owner alone unless `mode` says otherwise."""
    descriptor, incoming = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path(incoming).replace(path)


def read_token(path: Path) -> str:
    """The bearer token in a file.

    Raises:
        SetupError: it cannot be read, is empty, or others than its owner may read it.
    """
    try:
        token, mode = path.read_text().strip(), path.stat().st_mode & 0o777
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{path}: cannot read the token: {error}") from error
    if mode & 0o077:
        raise SetupError(f"{path} is open to others (mode {mode:o}); run: chmod 600 {path}")
    if not token:
        raise SetupError(f"{path} is empty; put the token there")
    return token
