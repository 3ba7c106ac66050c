"""Profiles: integer counters over fixed, signed bins that add up exactly across devices and windows.

Integer counts on published edges are deterministic, merge exactly in any order, and hold no observed value,
where a quantile sketch serialises raw values. Bins are (-inf, e1], (e1, e2], ..., (eB-1, +inf), compared as float32.
"""

import hashlib
from collections.abc import Sequence

import msgspec
import numpy as np

from contract import codec, limits
from contract.errors import ProfileError

CONFIDENCE_UNIT = 1_000_000  # Counts.confidence_sum is in millionths


class FeatureBins(msgspec.Struct, frozen=True):
    """The interior edges of one feature's bins, strictly increasing as float32."""

    name: str
    edges: list[float]


class ProfileSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is counted: bins of each feature, predicted class, bins of the top-class probability."""

    features: list[FeatureBins]
    classes: int
    confidence_edges: list[float]

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, lower-case hex: counts may be added only under the same digest."""
        return hashlib.sha256(codec.encode_json(self)).hexdigest()


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Counters under a ProfileSpec.

    Attributes:
        samples: inferences counted.
        features: one list of bin counts for each feature.
        missing: for each feature, samples without a finite value (in no bin).
        predictions: one count for each class.
        confidence: bin counts of the top-class probability.
        confidence_sum: sum of that probability in millionths, an integer so that it adds exactly; divided by
            `samples` it estimates accuracy where confidence is calibrated (CBPE, NannyML).
    """

    samples: int
    features: list[list[int]]
    missing: list[int]
    predictions: list[int]
    confidence: list[int]
    confidence_sum: int


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """The profile that a bundle calls normal: bins and the counts seen when it was made."""

    spec: ProfileSpec
    counts: Counts


def check_spec(spec: ProfileSpec) -> ProfileSpec:
    """Return `spec` if it can be counted under.

    Raises:
        ProfileError: too many features, bins or counters, edges not increasing, fewer than two classes.
    """
    if len(spec.features) > limits.PROFILE_FEATURES or spec.classes < 2:
        raise ProfileError(f"{len(spec.features)} features or {spec.classes} classes are outside the limits")
    counters = sum(len(f.edges) + 2 for f in spec.features) + spec.classes + len(spec.confidence_edges) + 1
    if counters > limits.PROFILE_COUNTERS:
        raise ProfileError(f"{counters} counters in a profile, at most {limits.PROFILE_COUNTERS} fit into a message")
    for name, edges in [*((f.name, f.edges) for f in spec.features), ("confidence", spec.confidence_edges)]:
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused as that
            values = np.asarray(edges, np.float32)
        if not 1 <= len(values) < limits.PROFILE_BINS:
            raise ProfileError(f"{name}: {len(values)} edges, expected 1 to {limits.PROFILE_BINS - 1}")
        if not np.isfinite(values).all() or not (np.diff(values) > 0).all():
            raise ProfileError(f"{name}: edges must be finite and strictly increasing")
    return spec


def confidence_edges(bins: int = 20) -> list[float]:
    """Equal bins of (0, 1) whose edges fall between the 256 codes of an int8 softmax."""
    return [round(round(256 * i / bins) / 256 - 1 / 512, 9) for i in range(1, bins)]


def quantile_edges(values: np.ndarray, bins: int = 10) -> list[float]:
    """Interior edges at the quantiles of reference values, without duplicates.

    Args:
        values: shape (samples,).
        bins: wanted number; fewer come out where values repeat.

    Raises:
        ProfileError: no finite value.
    """
    finite = np.asarray(values, np.float32)[np.isfinite(values)]
    if not len(finite):
        raise ProfileError("no finite value to take quantiles of")
    edges = np.unique(np.quantile(finite, np.linspace(0, 1, bins + 1)[1:-1]).astype(np.float32))
    return [float(edge) for edge in edges]


def zero(spec: ProfileSpec) -> Counts:
    """No samples: the identity of `add`."""
    return Counts(
        samples=0,
        features=[[0] * (len(feature.edges) + 1) for feature in spec.features],
        missing=[0] * len(spec.features),
        predictions=[0] * spec.classes,
        confidence=[0] * (len(spec.confidence_edges) + 1),
        confidence_sum=0,
    )


def count(spec: ProfileSpec, features: np.ndarray, probabilities: np.ndarray) -> Counts:
    """Count one batch.

    Args:
        features: shape (samples, len(spec.features)); values that are not finite count as missing.
        probabilities: shape (samples, classes), finite, in [0, 1].

    Raises:
        ProfileError: another shape, or probabilities that are not.
    """
    top, samples = _top(spec, features, probabilities), len(features)
    classes = probabilities.argmax(axis=1)
    binned, missing = [], []
    for column, feature in zip(np.asarray(features, np.float32).T, spec.features, strict=True):
        finite = np.isfinite(column)
        binned.append(_bin(column[finite], feature.edges))
        missing.append(int(samples - finite.sum()))
    return Counts(
        samples=samples,
        features=binned,
        missing=missing,
        predictions=np.bincount(classes, minlength=spec.classes).tolist(),
        confidence=_bin(top, spec.confidence_edges),
        confidence_sum=_millionths(top),
    )


class Counter:
    """`count` for many batches under one spec: adds to integers of its own, and gives them as Counts when asked.

    Every feature has a range of counters, one for each bin and one for what is missing.
    """

    def __init__(self, spec: ProfileSpec) -> None:
        """Lay out the counters; all are zero."""
        self._spec = spec
        self._edges = [np.asarray(feature.edges, np.float32) for feature in spec.features]
        self._confidence_edges = np.asarray(spec.confidence_edges, np.float32)
        widths = [len(edges) + 2 for edges in self._edges]
        self._starts = np.concatenate([[0], np.cumsum(widths, dtype=np.intp)]).astype(np.intp)
        self._missing = self._starts[1:] - 1
        self._zero()

    def _zero(self) -> None:
        self._samples = self._confidence_sum = 0
        self._features = np.zeros(self._starts[-1], np.int64)
        self._predictions = np.zeros(self._spec.classes, np.int64)
        self._confidence = np.zeros(len(self._confidence_edges) + 1, np.int64)

    def add(self, features: np.ndarray, probabilities: np.ndarray) -> None:
        """Count one batch.

        Args:
            features, probabilities: as for `count`.

        Raises:
            ProfileError: as `count`; nothing was counted then.
        """
        top = _top(self._spec, features, probabilities)
        features = np.asarray(features, np.float32)
        slots = np.empty(features.shape, np.intp)
        for index, edges in enumerate(self._edges):
            slots[:, index] = edges.searchsorted(features[:, index])
        slots += self._starts[:-1]
        finite = np.isfinite(features)
        if not finite.all():
            slots = np.where(finite, slots, self._missing)
        self._features += np.bincount(slots.reshape(-1), minlength=len(self._features))
        self._predictions += np.bincount(probabilities.argmax(axis=1), minlength=len(self._predictions))
        confidence = self._confidence_edges.searchsorted(top)
        self._confidence += np.bincount(confidence, minlength=len(self._confidence))
        self._confidence_sum += _millionths(top)
        self._samples += len(features)

    def take(self) -> Counts:
        """What was counted since the last call."""
        rows = [self._features[start:end].tolist() for start, end in zip(self._starts, self._missing, strict=False)]
        counts = Counts(
            samples=self._samples,
            features=rows,
            missing=self._features[self._missing].tolist(),
            predictions=self._predictions.tolist(),
            confidence=self._confidence.tolist(),
            confidence_sum=self._confidence_sum,
        )
        self._zero()
        return counts


def _top(spec: ProfileSpec, features: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Top-class probabilities of a batch that fits the spec."""
    samples = len(features)
    if features.shape != (samples, len(spec.features)) or probabilities.shape != (samples, spec.classes):
        raise ProfileError(f"shapes {features.shape} and {probabilities.shape} do not fit the profile")
    lowest, highest = probabilities.min(initial=0.0), probabilities.max(initial=0.0)
    if not (lowest >= 0 and highest <= 1.001):  # also where one is NaN
        raise ProfileError("probabilities must be finite and in [0, 1]")
    return probabilities.max(axis=1, initial=0.0).clip(0, 1).astype(np.float32)


def _millionths(top: np.ndarray) -> int:
    return int(np.rint(top.astype(np.float64) * CONFIDENCE_UNIT).astype(np.int64).sum())


def _bin(values: np.ndarray, edges: Sequence[float]) -> list[int]:
    index = np.searchsorted(np.asarray(edges, np.float32), values, side="left")
    return [int(n) for n in np.bincount(index, minlength=len(edges) + 1)]


def add(left: Counts, right: Counts) -> Counts:
    """Sum of two counts under one spec; commutative, associative, `zero` is neutral.

    Raises:
        ProfileError: counted under different bins.
    """
    if [*map(len, left.features), len(left.predictions), len(left.confidence)] != [
        *map(len, right.features),
        len(right.predictions),
        len(right.confidence),
    ]:
        raise ProfileError("counts of different bins cannot be added")
    return Counts(
        samples=left.samples + right.samples,
        features=[_sum(a, b) for a, b in zip(left.features, right.features, strict=True)],
        missing=_sum(left.missing, right.missing),
        predictions=_sum(left.predictions, right.predictions),
        confidence=_sum(left.confidence, right.confidence),
        confidence_sum=left.confidence_sum + right.confidence_sum,
    )


def _sum(left: Sequence[int], right: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(left, right, strict=True)]


def check_counts(spec: ProfileSpec, counts: Counts) -> Counts:
    """Return `counts` if a device could have counted them under `spec`.

    Raises:
        ProfileError: other bins, negative numbers, or totals that do not agree with `samples`.
    """
    shape = [len(f.edges) + 1 for f in spec.features]
    if [len(f) for f in counts.features] != shape or len(counts.missing) != len(shape):
        raise ProfileError("feature counts do not fit the bins")
    if len(counts.predictions) != spec.classes or len(counts.confidence) != len(spec.confidence_edges) + 1:
        raise ProfileError("prediction or confidence counts do not fit the bins")
    rows = [*counts.features, counts.missing, counts.predictions, counts.confidence]
    if counts.samples < 0 or any(n < 0 for row in rows for n in row):
        raise ProfileError("counts cannot be negative")
    totals = [sum(f) + m for f, m in zip(counts.features, counts.missing, strict=True)]
    if any(total != counts.samples for total in [*totals, sum(counts.predictions), sum(counts.confidence)]):
        raise ProfileError(f"counts do not add up to {counts.samples} samples")
    if not 0 <= counts.confidence_sum <= counts.samples * CONFIDENCE_UNIT:
        raise ProfileError("the confidence sum is outside [0, samples]")
    return counts


def estimated_accuracy(counts: Counts) -> float:
    """Mean top-class probability: the accuracy to expect if confidence is calibrated; NaN without samples.

    Valid under covariate shift only; blind to concept drift (CBPE as NannyML defines it).
    """
    return counts.confidence_sum / CONFIDENCE_UNIT / counts.samples if counts.samples else float("nan")
