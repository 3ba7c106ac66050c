"""One feature transform, one executor: the same spec runs in training, serving, simulation and the agent.

A spec has two parts. `steps` turn raw samples into the model's float32 input. `features` are the scalars that a
profile counts; they are read off the model input, so that drift is measured where the model feels it.
"""

import hashlib
import math
from collections.abc import Sequence

import msgspec
import numpy as np

from contract import codec, features, limits
from contract.errors import TransformError
from contract.features import Column, Feature, Mean, Share, Sharpness, Spread, Tilt

__all__ = [
    "Clip",
    "Column",
    "Feature",
    "Impute",
    "Mean",
    "Reshape",
    "Scale",
    "Share",
    "Sharpness",
    "Spread",
    "Step",
    "Tilt",
    "Transform",
    "TransformSpec",
    "decode",
]


class Impute(msgspec.Struct, frozen=True, tag_field="op", tag="impute"):
    """Replace NaN by `value`. Without this step NaN is refused, naming the sample."""

    value: float


class Clip(msgspec.Struct, frozen=True, tag_field="op", tag="clip"):
    """Limit to [low, high]."""

    low: float
    high: float


class Scale(msgspec.Struct, frozen=True, tag_field="op", tag="scale"):
    """(x - offset) / divisor; one number each, or one for each entry of the last axis."""

    offset: list[float]
    divisor: list[float]


class Reshape(msgspec.Struct, frozen=True, tag_field="op", tag="reshape"):
    """Give each sample another shape with as many entries."""

    shape: list[int]


Step = Impute | Clip | Scale | Reshape


class TransformSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A versioned transform.

    Attributes:
        input_shape: of one raw sample, for example [8, 8, 1].
        steps: raw sample to model input, in order.
        features: scalars to profile, in order; names are unique.
        revision: of this language; readers refuse a larger one.
    """

    input_shape: list[int]
    steps: list[Step]
    features: list[Feature]
    revision: int = 1

    def encode(self) -> bytes:
        """Canonical JSON: the bytes that the digest is over."""
        return codec.encode_json(self)

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, lower-case hex."""
        return hashlib.sha256(self.encode()).hexdigest()


def decode(data: bytes) -> TransformSpec:
    """Read a spec from JSON.

    Raises:
        WireError: too large or malformed.
    """
    return codec.decode_json(data, TransformSpec, limit=limits.MANIFEST_BYTES)


class Transform:
    """Runs a TransformSpec with numpy."""

    def __init__(self, spec: TransformSpec) -> None:
        """Check the spec once, so that running it can only fail on its input.

        Raises:
            TransformError: unknown revision, a shape that does not fit, a zero divisor, or features named twice.
        """
        if spec.revision != 1:
            raise TransformError(f"transform revision {spec.revision} is newer than this program understands (1)")
        self.spec = spec
        self.feature_names = tuple(feature.name for feature in spec.features)
        if len(set(self.feature_names)) != len(self.feature_names):
            raise TransformError(f"features are named twice: {self.feature_names}")
        self.output_shape = _check_shapes(spec)
        with np.errstate(over="ignore"):
            self._steps = [(step, operations(step)) for step in spec.steps]
        self._meter = features.Meter(spec.features, self.output_shape)

    def apply(self, raw: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Model input of raw samples.

        Args:
            raw: any real dtype, shape (samples, *input_shape).
            out: float32 of that shape to work in, in row order; it may be `raw` itself.

        Returns:
            float32, shape (samples, *output_shape).

        Raises:
            TransformError: another shape, a dtype that is not a real number, or values that are not finite.
        """
        self.check(raw)
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large is found to be infinite below
            values = np.empty(raw.shape, np.float32) if out is None else out
            np.copyto(values, raw, casting="unsafe")
            for step, done in self._steps:
                values = _run(step, done, values)
            entries = values.reshape(-1)
            surely_finite = math.isfinite(np.einsum("i,i->", entries, entries))  # without an array of answers
        if not surely_finite:
            finite = np.isfinite(_flat(values)).all(axis=1)
            if not finite.all():
                raise TransformError(f"sample {int(np.argmin(finite))} is not finite after the transform")
        return values

    def check(self, raw: np.ndarray) -> None:
        """Refuse what cannot be samples, before a number is looked at.

        Raises:
            TransformError: another shape, or a dtype that is not a real number.
        """
        shape = tuple(self.spec.input_shape)
        if raw.shape[1:] != shape:
            raise TransformError(f"expected samples of shape {shape}, got {raw.shape[1:]}")
        if raw.dtype.kind not in "fiub":
            raise TransformError(f"expected real numbers, got dtype {raw.dtype}")

    def scratch(self, samples: int) -> features.Scratch:
        """What `features` of so many samples needs, to be used again and again."""
        return self._meter.scratch(samples)

    def features(self, values: np.ndarray, scratch: features.Scratch | None = None) -> np.ndarray:
        """Profile features of model input.

        Args:
            values: float32, shape (samples, *output_shape), from `apply`.
            scratch: for as many samples or more.

        Returns:
            float32, shape (samples, features).
        """
        return self._meter(values, scratch)


def _check_shapes(spec: TransformSpec) -> tuple[int, ...]:
    shape = tuple(spec.input_shape)
    if not shape or any(size < 1 for size in shape):
        raise TransformError(f"input shape {shape[:9]} needs positive sizes")
    if len(shape) > limits.SAMPLE_DIMENSIONS or math.prod(shape) > limits.SAMPLE_VALUES:
        raise TransformError(
            f"input shape {shape[:9]}: at most {limits.SAMPLE_DIMENSIONS} sizes and {limits.SAMPLE_VALUES} values"
        )
    for step in spec.steps:
        if isinstance(step, Scale):
            _check_scale(step, shape)
        elif isinstance(step, Clip) and not step.low < step.high:
            raise TransformError(f"clip needs low < high, got {step.low} and {step.high}")
        elif isinstance(step, Reshape):
            fits = len(step.shape) <= limits.SAMPLE_DIMENSIONS and math.prod(step.shape) == math.prod(shape)
            if not fits or any(size < 1 for size in step.shape):
                raise TransformError(f"cannot reshape {shape} to {tuple(step.shape[:9])}")
            shape = tuple(step.shape)
    for feature in spec.features:
        features.check(feature, shape)
    return shape


def _check_scale(step: Scale, shape: Sequence[int]) -> None:
    sizes = {len(step.offset), len(step.divisor)}
    if not sizes <= {1, shape[-1]}:
        raise TransformError(f"scale has {sorted(sizes)} entries, the last axis of {tuple(shape)} has {shape[-1]}")
    with np.errstate(over="ignore", under="ignore"):  # what float32 cannot hold is refused here
        offset, divisor = np.asarray(step.offset, np.float32), np.asarray(step.divisor, np.float32)
    if not (np.isfinite(divisor).all() and divisor.all() and np.isfinite(offset).all()):
        raise TransformError("scale needs finite offsets and finite divisors other than zero")


def _run(step: Step, done: Sequence[tuple[np.ufunc, np.ndarray]], values: np.ndarray) -> np.ndarray:
    """Take one step, in place where it can be."""
    if isinstance(step, Impute):
        values[np.isnan(values)] = step.value
    elif isinstance(step, Reshape):
        return values.reshape(len(values), *step.shape)
    for operation, operand in done:
        operation(values, operand, out=values)
    return values


def operations(step: Step) -> list[tuple[np.ufunc, np.ndarray]]:
    """What a step does to every entry, one after the other; the operands are float32, one number or one an entry.

    What would change nothing is left out: x - 0 and x / 1 are x, to the bit. Impute and Reshape do none.
    """
    if isinstance(step, Impute | Reshape):
        return []
    if isinstance(step, Clip):
        return [(np.maximum, np.asarray(step.low, np.float32)), (np.minimum, np.asarray(step.high, np.float32))]
    offset, divisor = (np.asarray(n[0] if len(n) == 1 else n, np.float32) for n in (step.offset, step.divisor))
    found: list[tuple[np.ufunc, np.ndarray]] = []
    if offset.any() or np.signbit(offset).any():  # x - -0.0 turns -0.0 into 0.0
        found.append((np.subtract, offset))
    if (divisor != 1).any():
        found.append((np.divide, divisor))
    return found


def _flat(values: np.ndarray) -> np.ndarray:
    """One row a sample; also for no samples, where numpy cannot infer the width."""
    return values.reshape(len(values), math.prod(values.shape[1:]))
