"""The way of a single sample: transform, inference and profile in one path, without an array that need not be made.

A sample becomes the model's input on buffers that are used again and again, and is copied into a ring. Features and
counts are put off: when the ring is full, or somebody asks, they are taken of all at once by the code that counts
batches. So the counts are those of the batch's way, to the last one.
"""

import math
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from contract.features import Scratch
from contract.profile import Counter, Counts, ProfileSpec
from contract.single import SingleTransform, byte_table
from contract.transform import Transform
from edge_agent.errors import NotFiniteError
from edge_agent.runtime import Runtime

_ROWS, _RING_BYTES, _CHUNK_BYTES = 256, 1024 * 1024, 192 * 1024


class _Room(NamedTuple):
    """Rows of the ring, and of what is measured at a time: that should leave the model's weights in the cache."""

    rows: int
    chunk: int


def _room(transform: Transform) -> _Room:
    size = 4 * max(math.prod(transform.spec.input_shape), math.prod(transform.output_shape))
    rows = min(max(_RING_BYTES // size, 1), _ROWS)
    return _Room(rows, min(max(_CHUNK_BYTES // size, 1), rows))


class _Floats:
    """Samples of any real type: kept as float32, transformed and quantised by arithmetic."""

    def __init__(self, transform: Transform, runtime: Runtime, room: _Room) -> None:
        self._ring = np.zeros((room.rows, *transform.spec.input_shape), np.float32)
        self._raw = np.zeros(transform.spec.input_shape, np.float32)
        self._flat = self._raw.reshape(-1)
        self._single, self._quantize = SingleTransform(transform), runtime.quantizer()

    def keep(self, sample: np.ndarray, row: int) -> np.ndarray:
        """Keep a sample in a row of the ring; its model input, until the next call."""
        with np.errstate(over="ignore", invalid="ignore"):
            self._raw[...] = sample
            self._single.run(self._flat)
            self._ring[row] = self._raw
            return self._quantize(self._single.values)

    def kept(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """The raw samples in some rows, and where to work on them; the rows are free then."""
        return self._ring[rows], self._ring[rows]


class _Bytes:
    """Samples of bytes, each of which becomes the same model input wherever it stands: by a table.

    Where the table adds a number, modulo 256, it is added: images / 255 in most int8 models.
    """

    def __init__(self, transform: Transform, runtime: Runtime, room: _Room, table: np.ndarray) -> None:
        self._ring = np.zeros((room.rows, *transform.spec.input_shape), np.uint8)
        self._floats = np.empty((room.chunk, *transform.spec.input_shape), np.float32)
        self._table = table
        self._tensor = np.zeros((1, *runtime.input_shape), table.dtype)
        self._out = self._tensor.reshape(transform.spec.input_shape)
        self._shift: np.ndarray | None = None
        codes = table.view(np.uint8)
        if table.itemsize == 1 and (codes - codes[0] == np.arange(256)).all():
            self._shift, self._out = np.array(codes[0]), self._out.view(np.uint8)

    def keep(self, sample: np.ndarray, row: int) -> np.ndarray:
        """As _Floats."""
        self._ring[row] = sample
        if self._shift is not None:
            np.add(sample, self._shift, out=self._out)
        else:
            self._table.take(sample, out=self._out, mode="clip")
        return self._tensor

    def kept(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """As _Floats."""
        raw = self._ring[rows]
        return raw, self._floats[: len(raw)]


def _lane(transform: Transform, runtime: Runtime, room: _Room, dtype: np.dtype) -> _Floats | _Bytes:
    """The fastest way for samples of a type."""
    table = byte_table(transform) if dtype == np.uint8 else None
    return (
        _Floats(transform, runtime, room)
        if table is None
        else _Bytes(transform, runtime, room, runtime.quantize(table))
    )


class Steps:
    """Infers single samples and counts them."""

    def __init__(
        self,
        transform: Transform,
        runtime: Runtime,
        spec: ProfileSpec,
        probabilities: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        """Lay out the buffers.

        Args:
            transform, runtime: of the model.
            spec: what is counted.
            probabilities: of outputs of the model's own type, shape (n, classes).
        """
        self._transform, self._runtime, self._probabilities = transform, runtime, probabilities
        self._shape = tuple(transform.spec.input_shape)
        self._room = _room(transform)
        self._features = np.zeros((self._room.rows, len(spec.features)), np.float32)
        self._outputs = np.zeros((self._room.rows, 1, runtime.classes), runtime.output_type)
        self._may_be_infinite = runtime.output_type.kind == "f"
        self._counter = Counter(spec)
        self._scratch: Scratch | None = None
        self._lane: _Floats | _Bytes = _Floats(transform, runtime, self._room)
        self._keep, self._run = self._lane.keep, runtime.run
        self._dtype: np.dtype | None = None
        self._lock = threading.Lock()
        self._waiting = 0

    def step(self, sample: np.ndarray) -> np.ndarray:
        """Infer one sample and count it.

        Args:
            sample: raw, any real dtype, shape `input_shape` of the transform.

        Returns:
            The model's output in its own type, shape (1, classes).

        Raises:
            TransformError: a sample that the transform refuses; it is not counted.
            RuntimeModelError: the interpreter failed, or gave an output that is not finite; it is not counted.
        """
        with self._lock:
            if sample.dtype is not self._dtype or sample.shape != self._shape:
                self._bind(sample)
            row = self._waiting
            output = self._run(self._keep(sample, row))
            if self._may_be_infinite and not math.isfinite(sum(output[0].tolist())):
                self._check(output)
            self._outputs[row] = output
            self._waiting = row + 1
            if self._waiting == self._room.rows:
                self._count()
            return output

    def add(self, features: np.ndarray, probabilities: np.ndarray) -> None:
        """Count a batch that was inferred elsewhere."""
        with self._lock:
            self._counter.add(features, probabilities)

    def take(self) -> Counts:
        """Count what waits; the counts of everything since the last call. Any thread may call it at any time."""
        with self._lock:
            self._count()
            return self._counter.take()

    def _bind(self, sample: np.ndarray) -> None:
        """Get ready for samples of this type, or refuse it."""
        self._transform.check(sample[None])
        if (sample.dtype == np.uint8) != (self._dtype == np.uint8):
            self._count()
            self._lane = _lane(self._transform, self._runtime, self._room, sample.dtype)
            self._keep = self._lane.keep
        self._dtype = sample.dtype

    def _check(self, output: np.ndarray) -> None:
        if not np.isfinite(self._probabilities(output)).all():  # minus infinity is a probability of zero
            raise NotFiniteError("the model's output is not finite")

    def _count(self) -> None:
        """Measure and count what waits."""
        count, self._waiting = self._waiting, 0
        if not count:
            return
        self._scratch = self._scratch or self._transform.scratch(self._room.chunk)
        for start in range(0, count, self._room.chunk):
            rows = slice(start, min(start + self._room.chunk, count))
            values = self._transform.apply(*self._lane.kept(rows))
            self._features[rows] = self._transform.features(values, self._scratch)
        self._counter.add(self._features[:count], self._probabilities(self._outputs[:count, 0]))
