"""Artifacts of a search, each under its digest: a file that is there is whole."""

import hashlib
from collections.abc import Set as AbstractSet
from pathlib import Path

from compression import candidate
from compression.errors import SearchError


class Artifacts:
    """A folder of `.tflite` files.

    Args:
        folder: is made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = folder

    def put(self, content: bytes) -> str:
        """Keep an artifact; its SHA-256."""
        sha256 = hashlib.sha256(content).hexdigest()
        candidate.write(self._path(sha256), content)
        return sha256

    def get(self, sha256: str) -> bytes:
        """An artifact.

        Raises:
            SearchError: it is missing or damaged.
        """
        path = self._path(sha256)
        content = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(content).hexdigest() != sha256:
            raise SearchError(f"{path} is missing or damaged; search in another folder")
        return content

    def keep_only(self, wanted: AbstractSet[str]) -> None:
        """Remove all others."""
        for path in self._folder.iterdir():
            if path.stem not in wanted:
                path.unlink()

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.tflite"
