"""Samples of many clients on disk, laid out by client and memory-mapped: a client is a range of rows."""

import mmap
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from simulations.errors import SimulationError

_ROWS = 4096  # rows that are copied together


class Population:
    """Model input and classes, by client.

    Attributes:
        x: model input, float32 (n, *input), read-only.
        y: classes, int64 (n,), read-only.
        offsets: client c has rows offsets[c] to offsets[c + 1]; int64 (clients + 1,).
    """

    def __init__(self, folder: Path) -> None:
        """Open a population.

        Raises:
            SimulationError: a file that is missing, cut short or of another type, or offsets that do not fit.
        """
        self.x, self._pages, self._start = _mapped(folder / "x.npy", np.float32)
        self.y, _, _ = _mapped(folder / "y.npy", np.int64)
        self.offsets, _, _ = _mapped(folder / "offsets.npy", np.int64)
        if self.x.ndim < 1 or self.y.shape != (len(self.x),):
            raise SimulationError(f"{folder}: x.npy is {self.x.shape}, which y.npy, {self.y.shape}, does not fit")
        ends = self.offsets
        if ends.ndim != 1 or len(ends) < 2 or ends[0] != 0 or ends[-1] != len(self.y) or (np.diff(ends) < 0).any():
            raise SimulationError(f"{folder}: offsets.npy does not rise from 0 to the {len(self.y)} samples")

    @classmethod
    def create(cls, folder: Path, x: np.ndarray, y: np.ndarray, parts: Sequence[np.ndarray]) -> "Population":
        """Write a population beside its place, move it there whole, and open it.

        Args:
            folder: new.
            x: model input, (n, *input).
            y: classes, (n,).
            parts: rows of each client.

        Raises:
            SimulationError: the folder is there already, or cannot be written.
        """
        if folder.exists():
            raise SimulationError(f"{folder} is there already; remove it, or name another")
        part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
        order = np.concatenate([np.asarray(rows, np.int64) for rows in parts])
        blocks = [order[at : at + _ROWS] for at in range(0, len(order), _ROWS)]
        offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        try:
            part.mkdir(parents=True)
            _write(part / "x.npy", np.dtype(np.float32), (len(order), *x.shape[1:]), (x[rows] for rows in blocks))
            _write(part / "y.npy", np.dtype(np.int64), (len(order),), (y[rows] for rows in blocks))
            _write(part / "offsets.npy", np.dtype(np.int64), offsets.shape, [offsets])
            part.rename(folder)
        except OSError as error:
            raise SimulationError(f"{folder} cannot be written: {error.strerror}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return cls(folder)

    @property
    def clients(self) -> int:
        """How many."""
        return len(self.offsets) - 1

    def rows(self, client: int) -> np.ndarray:
        """Rows of a client, rising."""
        return np.arange(self.offsets[client], self.offsets[client + 1])

    def ahead(self, rows: np.ndarray) -> None:
        """Have the kernel read a client's rows in the background, for they are needed soon."""
        if not self.x.nbytes:
            return
        size = self.x.nbytes // len(self.x)
        first = (self._start + int(rows[0]) * size) // mmap.PAGESIZE * mmap.PAGESIZE
        self._pages.madvise(mmap.MADV_WILLNEED, first, self._start + (int(rows[-1]) + 1) * size - first)


def _write(path: Path, dtype: np.dtype, shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> None:
    """By write, not through a map: a full disk is an error then, not a dead process."""
    with path.open("wb") as file:
        npy.write_array_header_1_0(file, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).data)
        file.flush()
        os.fsync(file.fileno())


def _mapped(path: Path, wanted: type[np.generic]) -> tuple[np.ndarray, mmap.mmap, int]:
    """An array over a file's pages, the pages, and where in them it starts."""
    try:
        with path.open("rb") as file:
            first = npy.read_magic(file) == (1, 0)
            shape, fortran, dtype = (npy.read_array_header_1_0 if first else npy.read_array_header_2_0)(file)
            start, size = file.tell(), os.fstat(file.fileno()).st_size
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise SimulationError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SimulationError(f"{path} is no .npy file: {error}") from error
    if dtype != np.dtype(wanted) or fortran:
        raise SimulationError(f"{path} has {dtype}; it should have {np.dtype(wanted)}, row by row")
    count = int(np.prod(shape, dtype=object))
    if size != start + count * dtype.itemsize:
        raise SimulationError(f"{path} has {size} bytes; {shape} of {dtype} takes {start + count * dtype.itemsize}")
    return np.frombuffer(pages, dtype, count, start).reshape(shape), pages, start
