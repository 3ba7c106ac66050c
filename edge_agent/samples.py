"""Samples: `*.safetensors` files that another program writes beside and renames into the source folder.

A file holds `x`, raw samples of shape (n, *input_shape), and may hold `y`, integer labels of shape (n,). Each is
counted once, by name, in name order: name them so that newer ones sort later, and use no name twice.

Names here are plain text, not parts of a Path: pathlib interns each part that it ever sees, and once some thousand
names came and went the interpreter's table of interned strings is built anew at twice its size.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contract import tensors
from contract.errors import ContractError
from edge_agent.errors import SampleError

_SUFFIX = ".safetensors"
_FILE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Samples:
    """Raw samples, shape (n, *input_shape), and their labels, int64 of shape (n,), where there are any."""

    x: np.ndarray
    y: np.ndarray | None


def names(source: Path) -> list[str]:
    """Sample files in a folder, oldest name first; none where the folder is missing."""
    try:
        with os.scandir(source) as entries:
            found = [entry.name for entry in entries]
    except FileNotFoundError:
        return []
    return sorted(name for name in found if name.endswith(_SUFFIX) and name[0] != ".")


def read(folder: Path, name: str) -> Samples:
    """Read one file of a folder.

    Raises:
        SampleError: unreadable, larger than 16 MiB, or other tensors than `x` and `y`.
    """
    try:
        with open(f"{folder}/{name}", "rb") as file:  # noqa: PTH123 see above
            size = os.fstat(file.fileno()).st_size
            if size > _FILE_BYTES:
                raise SampleError(f"{name}: {size} bytes, the limit is {_FILE_BYTES}; write smaller files")
            arrays = tensors.load(file.read(_FILE_BYTES))
    except OSError as error:
        raise SampleError(f"{name}: {error.strerror}") from error
    except ContractError as error:
        raise SampleError(f"{name}: {error}") from error
    if "x" not in arrays or set(arrays) - {"x", "y"} or arrays["x"].ndim < 1:
        raise SampleError(f"{name}: needs `x` and may have `y`, has {sorted(arrays)[:8]}")
    x, y = arrays["x"], arrays.get("y")
    if y is not None and (y.shape != (len(x),) or y.dtype.kind not in "iu"):
        raise SampleError(f"{name}: `y` is {y.dtype}{y.shape}, expected integers of shape ({len(x)},)")
    return Samples(x, None if y is None else y.astype(np.int64))


def newest_labelled(paths: list[Path], limit: int) -> Samples:
    """Labelled samples of the newest files.

    Args:
        paths: oldest first; files without labels, and broken ones, are passed over.
        limit: most samples to take.

    Returns:
        At most `limit` samples with labels, the newest first.

    Raises:
        SampleError: there are none.
    """
    xs: list[np.ndarray] = []
    ys: list[np.ndarray] = []
    room = limit
    for path in reversed(paths):
        if room <= 0:
            break
        try:
            samples = read(path.parent, path.name)
        except SampleError:
            continue
        if samples.y is None or not len(samples.x) or (xs and samples.x.shape[1:] != xs[0].shape[1:]):
            continue
        xs.append(samples.x[:room])
        ys.append(samples.y[:room])
        room -= len(xs[-1])
    if not xs:
        raise SampleError("no labelled samples on this device")
    return Samples(np.concatenate(xs), np.concatenate(ys))


def join(files: Samples | None, kept: Samples | None, limit: int) -> Samples:
    """Labelled samples of files and of the store, each the newest first; too many are cut in proportion.

    Raises:
        SampleError: there are none.
    """
    parts = [part for part in (files, kept) if part is not None and part.y is not None]
    if not parts:
        raise SampleError("no labelled samples on this device")
    total = sum(len(part.x) for part in parts)
    if len(parts) == 2 and parts[0].x.shape[1:] != parts[1].x.shape[1:]:
        raise SampleError(
            f"samples of shapes {parts[0].x.shape[1:]} and {parts[1].x.shape[1:]} cannot be used together"
        )
    shares = [len(part.x) if total <= limit else max(1, limit * len(part.x) // total) for part in parts]
    return Samples(
        np.concatenate([part.x[:share] for part, share in zip(parts, shares, strict=True)])[:limit],
        np.concatenate([part.y[:share] for part, share in zip(parts, shares, strict=True) if part.y is not None])[
            :limit
        ],
    )
