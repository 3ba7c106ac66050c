"""Is a new bundle well? Counts of its inferences go in, a verdict comes out. Pure.

A bundle is bad as soon as it can no longer pass: errors, outputs that are not finite and slow inferences are measured
against the inferences that were made, or those that probation asks for, whichever are more. One bad inference at the
very start is no verdict.
"""

import math
from typing import NamedTuple

import msgspec

from edge_agent.config import Health

_SLOW_SHARE = 0.05  # more of them above the limit, and the 95th percentile is above it


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of a bundle.

    Attributes:
        seconds: that it served.
        inferences: that were made or tried.
        errors: that failed in the model.
        not_finite: whose output was not finite.
        slow: that took longer than `health.max_latency_ms`.
        confidence: sum of the top-class probabilities of the rest.
    """

    seconds: float = 0.0
    inferences: int = 0
    errors: int = 0
    not_finite: int = 0
    slow: int = 0
    confidence: float = 0.0

    def __add__(self, other: "Tally") -> "Tally":
        """Both together."""
        return Tally(
            seconds=self.seconds + other.seconds,
            inferences=self.inferences + other.inferences,
            errors=self.errors + other.errors,
            not_finite=self.not_finite + other.not_finite,
            slow=self.slow + other.slow,
            confidence=self.confidence + other.confidence,
        )


class Verdict(NamedTuple):
    """`good`, `bad` (and why) or, while neither is sure, `unknown`."""

    word: str
    reason: str = ""


UNKNOWN, GOOD = Verdict("unknown"), Verdict("good")


def judge(tally: Tally, health: Health) -> Verdict:
    """What the counts say of a bundle on probation."""
    made = tally.inferences
    enough = max(made, health.probation_inferences)
    finite = made - tally.errors - tally.not_finite
    confidence = tally.confidence / finite if finite else math.nan
    if tally.errors > health.max_error_share * enough:
        return _bad(f"{tally.errors} of {made} inferences failed", f"max_error_share is {health.max_error_share:g}")
    if tally.not_finite > health.max_nan_share * enough:
        limit = f"max_nan_share is {health.max_nan_share:g}"
        return _bad(f"{tally.not_finite} of {made} outputs were not finite", limit)
    if health.max_latency_ms and tally.slow > _SLOW_SHARE * enough:
        limit = f"max_latency_ms is {health.max_latency_ms:g} for the 95th percentile"
        return _bad(f"{tally.slow} of {made} inferences were too slow", limit)
    if made < health.probation_inferences:
        return UNKNOWN
    if health.min_confidence and finite and confidence < health.min_confidence:
        limit = f"min_confidence is {health.min_confidence:g}"
        return _bad(f"the mean confidence of {finite} inferences is {confidence:.3f}", limit)
    return GOOD if tally.seconds >= health.probation_s else UNKNOWN


def _bad(what: str, limit: str) -> Verdict:
    return Verdict("bad", f"on probation: {what}, health.{limit}")


class Meter:
    """Counts the inferences of one bundle. Use it where the model is held: it has no lock of its own."""

    __slots__ = ("_confidence", "_errors", "_inferences", "_limit_s", "_not_finite", "_slow")

    def __init__(self, health: Health) -> None:
        """Begin at nothing."""
        self._limit_s = health.max_latency_ms / 1000 if health.max_latency_ms else math.inf
        self._inferences = self._errors = self._not_finite = self._slow = 0
        self._confidence = 0.0

    def served(self, inferences: int, seconds: float, confidence: float) -> None:
        """Inferences that gave finite outputs, the time of all, and the sum of their top-class probabilities."""
        self._inferences += inferences
        self._confidence += confidence
        if seconds > self._limit_s * inferences:
            self._slow += inferences

    def failed(self, inferences: int) -> None:
        """Inferences that the runtime did not make."""
        self._inferences += inferences
        self._errors += inferences

    def not_finite(self, inferences: int) -> None:
        """Inferences whose output was not finite."""
        self._inferences += inferences
        self._not_finite += inferences

    def read(self) -> Tally:
        """What was counted since the beginning, but for the time."""
        return Tally(
            inferences=self._inferences,
            errors=self._errors,
            not_finite=self._not_finite,
            slow=self._slow,
            confidence=self._confidence,
        )
