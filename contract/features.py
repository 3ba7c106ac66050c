"""Features: the scalars that a profile counts, read off the model input; an image by its statistics, not by pixel.

Every feature of a sample is the same number whatever samples are beside it, to the bit: what is counted one by one on
a device is what a batch gives.
"""

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from contract.errors import TransformError

_ENTRIES = 4096  # added at a time


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


class Share(msgspec.Struct, frozen=True, tag_field="op", tag="share"):
    """Part of the entries in [low, high), without a bound where it is None: several make a coarse histogram."""

    name: str
    low: float | None = None
    high: float | None = None

    def bounds(self) -> tuple[np.float32, np.float32]:
        """As numbers, perhaps infinite."""
        low, high = -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high
        with np.errstate(over="ignore"):  # beyond float32 is infinite
            return np.float32(low), np.float32(high)


class Sharpness(msgspec.Struct, frozen=True, tag_field="op", tag="sharpness"):
    """Mean absolute difference of neighbours, along both axes of an image of shape (height, width, channels)."""

    name: str


class Tilt(msgspec.Struct, frozen=True, tag_field="op", tag="tilt"):
    """Orientation of an image's mass: half the angle of its second central moments, in radians (Hu 1962)."""

    name: str


Feature = Column | Mean | Spread | Share | Sharpness | Tilt


def check(feature: Feature, shape: Sequence[int]) -> None:
    """Refuse a feature that model input of this shape cannot give.

    Raises:
        TransformError: a column outside the sample, an image feature of what is no image, an empty range.
    """
    if isinstance(feature, Column) and not 0 <= feature.index < math.prod(shape):
        raise TransformError(f"feature {feature.name!r}: column {feature.index} is outside shape {tuple(shape)}")
    if isinstance(feature, Sharpness | Tilt) and len(shape) != 3:
        raise TransformError(f"feature {feature.name!r} needs images (height, width, channels), not {tuple(shape)}")
    if isinstance(feature, Share) and not np.less(*feature.bounds()):
        raise TransformError(f"feature {feature.name!r} needs low < high, got {feature.low} and {feature.high}")


class Scratch:
    """Room to measure in. One for all features: what is not written leaves the model's weights in the cache."""

    def __init__(self, samples: int, size: int, *, shares: bool, floats: bool) -> None:
        """Answers are bytes of whole words, and what is beyond a row's end stays false."""
        self.answers = np.zeros((samples if shares else 0, -(-size // 8) * 8), bool)
        self.floats = np.empty((samples if floats else 0, size), np.float32)


class Meter:
    """Measures features of model input of one shape; what several of them need is computed once."""

    def __init__(self, features: Sequence[Feature], shape: Sequence[int]) -> None:
        """Plan; `check` has passed every feature.

        Args:
            features: in the order of the columns to give.
            shape: of one sample of model input.
        """
        self._shape = tuple(shape)
        self._size = np.float32(math.prod(shape))
        self._count = len(features)
        self._columns = [(i, feature.index) for i, feature in enumerate(features) if isinstance(feature, Column)]
        places = {kind: [i for i, f in enumerate(features) if type(f) is kind] for kind in Feature.__args__}
        self._means, self._spreads, self._shares = places[Mean], places[Spread], places[Share]
        self._images = [(i, measure) for kind, measure in _IMAGE.items() for i in places[kind]]
        bounds = [feature.bounds() for feature in features if isinstance(feature, Share)]
        self._edges, edge = np.unique(np.array(bounds, np.float32).reshape(-1), return_inverse=True)
        self._low, self._high = edge.reshape(-1, 2).T

    def scratch(self, samples: int) -> Scratch:
        """What measuring so many samples needs, to be used again and again."""
        return Scratch(samples, int(self._size), shares=bool(self._shares), floats=bool(self._spreads or self._images))

    def __call__(self, values: np.ndarray, scratch: Scratch | None = None) -> np.ndarray:
        """The features of some samples.

        Args:
            values: float32, shape (samples, *shape), finite.
            scratch: for as many samples or more; where there is none, it is made.

        Returns:
            float32, shape (samples, features).
        """
        samples = len(values)
        flat = np.ascontiguousarray(values).reshape(samples, int(self._size))
        measured = np.empty((self._count, samples), np.float32)
        scratch = scratch or self.scratch(samples)
        floats = scratch.floats[:samples]
        for place, column in self._columns:
            measured[place] = flat[:, column]
        if self._means or self._spreads:
            mean = _sum(flat) / self._size
            for place in self._means:
                measured[place] = mean
        if self._spreads:
            np.subtract(flat, mean[:, None], out=floats)
            spread = np.sqrt(_sum(np.square(floats, out=floats)) / self._size)
            for place in self._spreads:
                measured[place] = spread
        if self._shares:
            at_least = self._at_least(flat, scratch.answers[:samples])
            measured[self._shares] = (at_least[self._low] - at_least[self._high]) / self._size
        for place, measure in self._images:
            measured[place] = measure(flat, self._shape, floats)
        return measured.T

    def _at_least(self, flat: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """How many entries of each row are not below each edge, shape (edges, rows).

        Eight answers are added at a time, as the bytes of a word, up to 255 words: far faster than to add booleans.
        """
        samples, size = flat.shape
        words, answered = answers.view(np.uint64), answers[:, :size]
        starts = range(0, words.shape[1], 255)
        added = np.zeros((len(self._edges), samples, len(starts)), np.uint64)
        for edge, sums in zip(self._edges, added, strict=True):
            if not math.isfinite(edge):
                continue
            np.greater_equal(flat, edge, out=answered)
            for chunk, start in enumerate(starts):
                np.add.reduce(words[:, start : start + 255], axis=1, out=sums[:, chunk])
        counts = np.einsum("ijk->ij", added.view(np.uint8), dtype=np.float32)
        counts[self._edges == -math.inf] = size
        return counts


def _sum(flat: np.ndarray) -> np.ndarray:
    """Of each row, the same whatever the other rows: einsum is faster than `sum` by far, and cuts long rows anywhere.

    Up to numpy's buffer of 8192 entries it does not cut; longer rows are cut here.
    """
    total = np.einsum("ij->i", flat[:, :_ENTRIES])
    for start in range(_ENTRIES, flat.shape[1], _ENTRIES):
        total += np.einsum("ij->i", flat[:, start : start + _ENTRIES])
    return total


def _sharpness(flat: np.ndarray, shape: tuple[int, ...], scratch: np.ndarray) -> np.ndarray:
    """Neighbours are a row, or a pixel, apart in memory; what is beside the last row, or pixel, is none."""
    height, width, channels = shape
    row = width * channels
    _differences(flat, row, scratch)
    scratch.reshape(-1, height, row)[:, -1] = 0
    down = _sum(scratch) / np.float32(max((height - 1) * row, 1))
    _differences(flat, channels, scratch)
    scratch.reshape(-1, *shape)[:, :, -1] = 0
    return (down + _sum(scratch) / np.float32(max(height * (width - 1) * channels, 1))) / 2


def _differences(flat: np.ndarray, apart: int, out: np.ndarray) -> None:
    """Absolute differences of all entries that are so far apart, also across rows; the last have no partner: 0."""
    whole, differences = flat.reshape(-1), out.reshape(-1)
    differences[-apart:] = 0
    np.subtract(whole[apart:], whole[:-apart], out=differences[:-apart])
    np.abs(out, out=out)


def _tilt(flat: np.ndarray, shape: tuple[int, ...], _scratch: np.ndarray) -> np.ndarray:
    mass = flat.reshape(-1, *shape).sum(axis=3, dtype=np.float64)
    mass = mass - mass.min(axis=(1, 2), keepdims=True)
    total = np.maximum(mass.sum(axis=(1, 2)), 1e-12)
    rows, columns = np.mgrid[: mass.shape[1], : mass.shape[2]]
    row = (mass * rows).sum(axis=(1, 2)) / total
    column = (mass * columns).sum(axis=(1, 2)) / total
    dr, dc = rows - row[:, None, None], columns - column[:, None, None]
    cross, rr, cc = ((mass * m).sum(axis=(1, 2)) for m in (dr * dc, dr * dr, dc * dc))
    return 0.5 * np.arctan2(2 * cross, rr - cc)


_IMAGE: dict[type, Callable[[np.ndarray, tuple[int, ...], np.ndarray], np.ndarray]] = {
    Sharpness: _sharpness,
    Tilt: _tilt,
}
