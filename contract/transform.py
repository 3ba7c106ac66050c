"""One feature transform, one executor: the same spec runs in training, serving, simulation and the agent.

A spec has two parts. `steps` turn raw samples into the model's float32 input. `features` are the scalars that a
profile counts; they are read off the model input, so that drift is measured where the model feels it.
"""

import hashlib
import math
from collections.abc import Sequence

import msgspec
import numpy as np

from contract import codec, limits
from contract.errors import TransformError


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


class Column(msgspec.Struct, frozen=True, tag_field="op", tag="column"):
    """Entry `index` of the flattened model input."""

    name: str
    index: int


class Mean(msgspec.Struct, frozen=True, tag_field="op", tag="mean"):
    """Mean over the sample: brightness, for an image."""

    name: str


class Spread(msgspec.Struct, frozen=True, tag_field="op", tag="spread"):
    """Standard deviation over the sample: contrast, for an image."""

    name: str


class Sharpness(msgspec.Struct, frozen=True, tag_field="op", tag="sharpness"):
    """Mean absolute difference of neighbours, along both axes of an image of shape (height, width, channels)."""

    name: str


class Tilt(msgspec.Struct, frozen=True, tag_field="op", tag="tilt"):
    """Orientation of an image's mass: half the angle of its second central moments, in radians (Hu 1962)."""

    name: str


Step = Impute | Clip | Scale | Reshape
Feature = Column | Mean | Spread | Sharpness | Tilt


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

    def apply(self, raw: np.ndarray) -> np.ndarray:
        """Model input of raw samples.

        Args:
            raw: any real dtype, shape (samples, *input_shape).

        Returns:
            float32, shape (samples, *output_shape).

        Raises:
            TransformError: another shape, a dtype that is not a real number, or values that are not finite.
        """
        shape = tuple(self.spec.input_shape)
        if raw.shape[1:] != shape:
            raise TransformError(f"expected samples of shape {shape}, got {raw.shape[1:]}")
        if raw.dtype.kind not in "fiub":
            raise TransformError(f"expected real numbers, got dtype {raw.dtype}")
        values = raw.astype(np.float32)
        for step in self.spec.steps:
            values = _run(step, values)
        finite = np.isfinite(_flat(values)).all(axis=1)
        if not finite.all():
            raise TransformError(f"sample {int(np.argmin(finite))} is not finite after the transform")
        return values

    def features(self, values: np.ndarray) -> np.ndarray:
        """Profile features of model input.

        Args:
            values: float32, shape (samples, *output_shape), from `apply`.

        Returns:
            float32, shape (samples, features).
        """
        columns = [_feature(feature, values) for feature in self.spec.features]
        if not columns:
            return np.zeros((len(values), 0), np.float32)
        return np.stack(columns, axis=1).astype(np.float32)


def _check_shapes(spec: TransformSpec) -> tuple[int, ...]:
    shape = tuple(spec.input_shape)
    if not shape or any(size < 1 for size in shape):
        raise TransformError(f"input shape {shape} needs positive sizes")
    for step in spec.steps:
        if isinstance(step, Scale):
            _check_scale(step, shape)
        elif isinstance(step, Clip) and not step.low < step.high:
            raise TransformError(f"clip needs low < high, got {step.low} and {step.high}")
        elif isinstance(step, Reshape):
            if any(size < 1 for size in step.shape) or math.prod(step.shape) != math.prod(shape):
                raise TransformError(f"cannot reshape {shape} to {tuple(step.shape)}")
            shape = tuple(step.shape)
    for feature in spec.features:
        if isinstance(feature, Column) and not 0 <= feature.index < math.prod(shape):
            raise TransformError(f"feature {feature.name!r}: column {feature.index} is outside shape {shape}")
        if isinstance(feature, Sharpness | Tilt) and len(shape) != 3:
            raise TransformError(f"feature {feature.name!r} needs images (height, width, channels), not {shape}")
    return shape


def _check_scale(step: Scale, shape: Sequence[int]) -> None:
    sizes = {len(step.offset), len(step.divisor)}
    if not sizes <= {1, shape[-1]}:
        raise TransformError(f"scale has {sorted(sizes)} entries, the last axis of {tuple(shape)} has {shape[-1]}")
    with np.errstate(over="ignore", under="ignore"):  # what float32 cannot hold is refused here
        offset, divisor = np.asarray(step.offset, np.float32), np.asarray(step.divisor, np.float32)
    if not (np.isfinite(divisor).all() and divisor.all() and np.isfinite(offset).all()):
        raise TransformError("scale needs finite offsets and finite divisors other than zero")


def _run(step: Step, values: np.ndarray) -> np.ndarray:
    if isinstance(step, Impute):
        return np.where(np.isnan(values), np.float32(step.value), values)
    if isinstance(step, Clip):
        return np.clip(values, np.float32(step.low), np.float32(step.high))
    if isinstance(step, Scale):
        return (values - np.asarray(step.offset, np.float32)) / np.asarray(step.divisor, np.float32)
    return values.reshape(len(values), *step.shape)


def _feature(feature: Feature, values: np.ndarray) -> np.ndarray:
    flat = _flat(values)
    if isinstance(feature, Column):
        return flat[:, feature.index]
    if isinstance(feature, Mean):
        return flat.mean(axis=1)
    if isinstance(feature, Spread):
        return flat.std(axis=1)
    if isinstance(feature, Tilt):
        return _tilt(values)
    down = _flat(np.abs(np.diff(values, axis=1))).mean(axis=1)
    across = _flat(np.abs(np.diff(values, axis=2))).mean(axis=1)
    return (down + across) / 2


def _flat(values: np.ndarray) -> np.ndarray:
    """One row a sample; also for no samples, where numpy cannot infer the width."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _tilt(values: np.ndarray) -> np.ndarray:
    mass = values.sum(axis=3, dtype=np.float64)
    mass = mass - mass.min(axis=(1, 2), keepdims=True)
    total = np.maximum(mass.sum(axis=(1, 2)), 1e-12)
    rows, columns = np.mgrid[: mass.shape[1], : mass.shape[2]]
    row = (mass * rows).sum(axis=(1, 2)) / total
    column = (mass * columns).sum(axis=(1, 2)) / total
    dr, dc = rows - row[:, None, None], columns - column[:, None, None]
    cross, rr, cc = ((mass * m).sum(axis=(1, 2)) for m in (dr * dc, dr * dr, dc * dc))
    return 0.5 * np.arctan2(2 * cross, rr - cc)
