"""One sample at a time: a Transform as a few calls on a buffer of its own, with the same results to the bit."""

import math

import numpy as np

from contract.errors import TransformError
from contract.transform import Impute, Reshape, Scale, Step, Transform, TransformSpec, operations


class SingleTransform:
    """Runs a Transform on one sample after another without making arrays.

    Attributes:
        values: float32, shape (1, *output_shape): the model input of the last sample, until the next one.
    """

    def __init__(self, transform: Transform) -> None:
        """Lay out the operands: one number, or one for each entry of the flat sample."""
        self._transform = transform
        shape = tuple(transform.spec.input_shape)
        self._flat = np.zeros(math.prod(shape), np.float32)
        self.values = self._flat.reshape(1, *transform.output_shape)
        self._shape = (1, *shape)
        self._imputes = any(isinstance(step, Impute) for step in transform.spec.steps)
        self._operations: list[tuple[np.ufunc, np.ndarray]] = []
        with np.errstate(over="ignore"):
            for step in transform.spec.steps:
                if isinstance(step, Reshape):
                    shape = tuple(step.shape)
                elif not isinstance(step, Impute):  # NaN is seen and takes the slow way
                    self._operations += [(op, n if n.ndim == 0 else _each(n, shape)) for op, n in operations(step)]

    def run(self, sample: np.ndarray) -> None:
        """Leave the sample's model input in `values`.

        The sum of squares is a fast question: it is finite only where every entry is. Where it is not, an entry is
        missing, infinite or merely large, and the batch's way is taken.

        Args:
            sample: float32, flat, as many entries as `input_shape` has. Call with numpy's warnings about overflow and
                invalid values off.

        Raises:
            TransformError: as Transform.apply.
        """
        flat = self._flat
        if self._imputes and not math.isfinite(sample.dot(sample)):
            self._run_slowly(sample)
            return
        source = sample
        for operation, operand in self._operations:
            operation(source, operand, out=flat)
            source = flat
        if source is sample:
            flat[:] = sample
        if not math.isfinite(flat.dot(flat)):
            self._run_slowly(sample)

    def _run_slowly(self, sample: np.ndarray) -> None:
        self.values[...] = self._transform.apply(sample.reshape(self._shape))


def _each(numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One number for each entry of the last axis, repeated for every entry of the flat sample."""
    return np.ascontiguousarray(np.broadcast_to(numbers, shape)).reshape(-1)


def byte_table(transform: Transform) -> np.ndarray | None:
    """Model input of each byte, float32 of shape (256,); None where its place matters, or one is not finite."""
    steps: list[Step] = [step for step in transform.spec.steps if not isinstance(step, Reshape)]
    if any(isinstance(step, Scale) and len(step.offset) + len(step.divisor) > 2 for step in steps):
        return None
    one = Transform(TransformSpec(input_shape=[1], steps=steps, features=[]))
    try:
        return one.apply(np.arange(256, dtype=np.uint8)[:, None])[:, 0]
    except TransformError:
        return None
