"""Files that survive a kill or a power cut at any moment: a name shows the old content or the new, never a part.

Everything that the agent must find again after a power cut is written through here: the file is flushed before its
name points to it, and its folder after.
"""

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write beside, flush to the disk, rename over, flush the folder."""
    make_folder(path.parent)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        try:
            _write(descriptor, content)
        finally:
            os.close(descriptor)
        os.replace(beside, path)  # noqa: PTH105 - every call that changes the disk goes through `os`, so that a test can break each
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    flush(path.parent)


def append(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write at the end of a file, which is made if need be, and flush it; what a cut leaves of `content` is a part.

    The folder is flushed where the file is new, so that its name is on the disk, too.
    """
    new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | (os.O_CREAT | os.O_EXCL if new else 0), mode)
    try:
        _write(descriptor, content)
    finally:
        os.close(descriptor)
    if new:
        flush(path.parent)


def _write(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)


def move(source: Path, target: Path) -> None:
    """Flush a file to the disk and give it another name, in another folder of the same disk perhaps."""
    make_folder(target.parent)
    flush(source)
    os.replace(source, target)  # noqa: PTH105 - as above
    flush(target.parent)
    flush(source.parent)


def remove(path: Path) -> None:
    """Take a file away for good; one that is not there is no error."""
    try:
        os.unlink(path)  # noqa: PTH108 - as above
    except FileNotFoundError:
        return
    flush(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, only for the owner, and flush what names them."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        os.makedirs(folder, mode=0o700, exist_ok=True)  # noqa: PTH103 - as above
        flush(folder.parent)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
