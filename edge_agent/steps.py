"""The way of a single sample: transform, inference and profile in one path, without an array that need not be made.

A sample is copied once, into a row of a ring; the model's input is made from there on fixed buffers. Counting is put
off: rows and outputs wait in the ring, and when it is full, or somebody asks, all of them are counted at once by the
code that counts batches. So the counts are those of the batch's way, to the last one.
"""

import math
import threading
from collections.abc import Callable

import numpy as np

from contract.profile import Counter, Counts, ProfileSpec
from contract.single import SingleTransform, byte_table
from contract.transform import Transform
from edge_agent.errors import NotFiniteError
from edge_agent.runtime import Runtime

_ROWS, _RING_BYTES = 256, 512 * 1024  # what waits to be counted: rows, and bytes as float32


class _Floats:
    """Samples of any real type: kept as float32, transformed and quantised by arithmetic."""

    def __init__(self, transform: Transform, runtime: Runtime, rows: int) -> None:
        self._ring = np.zeros((rows, *transform.spec.input_shape), np.float32)
        self._row, self._flat = list(self._ring), list(self._ring.reshape(rows, -1))
        self._single, self._quantize = SingleTransform(transform), runtime.quantizer()

    def keep(self, sample: np.ndarray, row: int) -> np.ndarray:
        """Keep a sample in a row of the ring; its model input, until the next call."""
        with np.errstate(over="ignore", invalid="ignore"):
            self._row[row][...] = sample
            self._single.run(self._flat[row])
            return self._quantize(self._single.values)

    def kept(self, rows: int) -> np.ndarray:
        """The raw samples in the first rows."""
        return self._ring[:rows]


class _Bytes:
    """Samples of bytes, each of which becomes the same model input wherever it stands: by a table."""

    def __init__(self, transform: Transform, runtime: Runtime, rows: int, table: np.ndarray) -> None:
        self._ring = np.zeros((rows, *transform.spec.input_shape), np.uint8)
        self._row, self._table = list(self._ring), table
        self._tensor = np.zeros((1, *runtime.input_shape), table.dtype)
        self._out = self._tensor.reshape(transform.spec.input_shape)

    def keep(self, sample: np.ndarray, row: int) -> np.ndarray:
        """As _Floats."""
        self._row[row][...] = sample
        self._table.take(self._row[row], out=self._out, mode="clip")
        return self._tensor

    def kept(self, rows: int) -> np.ndarray:
        """As _Floats."""
        return self._ring[:rows]


class _Shifted:
    """Samples of bytes whose model input is the byte and a number, modulo 256: images / 255 in most int8 models.

    The ring holds the model input, so that a sample is read and written once.
    """

    def __init__(self, transform: Transform, runtime: Runtime, rows: int, table: np.ndarray) -> None:
        self._ring = np.zeros((rows, *transform.spec.input_shape), np.uint8)
        self._row = list(self._ring)
        self._tensors = list(self._ring.view(table.dtype).reshape(rows, 1, *runtime.input_shape))
        self._shift = np.array(table.view(np.uint8)[0])

    def keep(self, sample: np.ndarray, row: int) -> np.ndarray:
        """As _Floats."""
        np.add(sample, self._shift, out=self._row[row])
        return self._tensors[row]

    def kept(self, rows: int) -> np.ndarray:
        """As _Floats."""
        return self._ring[:rows] - self._shift


def _lane(transform: Transform, runtime: Runtime, rows: int, dtype: np.dtype) -> _Floats | _Bytes | _Shifted:
    """The fastest way for samples of a type."""
    values = byte_table(transform) if dtype == np.uint8 else None
    if values is None:
        return _Floats(transform, runtime, rows)
    table = runtime.quantize(values)
    if table.itemsize == 1 and (table.view(np.uint8) - table.view(np.uint8)[0] == np.arange(256)).all():
        return _Shifted(transform, runtime, rows, table)
    return _Bytes(transform, runtime, rows, table)


class Steps:
    """Infers single samples and counts them.

    Attributes:
        waiting: samples in the ring that are not counted yet.
    """

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
        size = max(math.prod(self._shape), math.prod(transform.output_shape))
        self._room = min(max(_RING_BYTES // (4 * size), 1), _ROWS)
        self._outputs = np.zeros((self._room, 1, runtime.classes), runtime.output_type)
        self._output = list(self._outputs)
        self._may_be_infinite = runtime.output_type.kind == "f"
        self._counter = Counter(spec)
        self._lane: _Floats | _Bytes | _Shifted = _Floats(transform, runtime, self._room)
        self._keep, self._run = self._lane.keep, runtime.run
        self._dtype: np.dtype | None = None
        self._lock = threading.Lock()
        self.waiting = 0

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
            row = self.waiting
            output = self._run(self._keep(sample, row))
            if self._may_be_infinite and not math.isfinite(sum(output[0].tolist())):
                self._check(output)
            self._output[row][...] = output
            self.waiting = row + 1
            if self.waiting == self._room:
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
        if self.waiting:
            values = self._transform.apply(self._lane.kept(self.waiting))
            outputs = self._outputs[: self.waiting, 0]
            self._counter.add(self._transform.features(values), self._probabilities(outputs))
            self.waiting = 0
