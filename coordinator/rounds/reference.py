"""The reference profile of a federated version: what is normal is what its cohort sees now.

Features come from the cohort's own recent windows, predictions and confidence from the evaluation of the new weights.
The two count different numbers of samples, but a profile has one total: both are scaled down to the smaller, so that
no sample is invented and a test against this reference is never more certain than its smaller part.
"""

from collections.abc import Sequence

import numpy as np

from contract import profile
from contract.profile import Counts, ProfileSpec, Reference


def merge(spec: ProfileSpec, windows: Counts, evaluated: Counts) -> Reference:
    """Make a reference from recent windows and an evaluation under the same bins.

    Args:
        spec: bins, of the base bundle.
        windows: recent counts of the cohort; where it is empty, all comes from the evaluation.
        evaluated: counts of the evaluation with the new weights.

    Raises:
        ProfileError: counts that do not fit `spec`.
    """
    profile.check_counts(spec, windows)
    profile.check_counts(spec, evaluated)
    samples = min(windows.samples, evaluated.samples)
    if not samples:
        return Reference(spec=spec, counts=evaluated)
    rows = [
        apportion([*bins, missing], samples) for bins, missing in zip(windows.features, windows.missing, strict=True)
    ]
    total = round(evaluated.confidence_sum * samples / evaluated.samples)
    counts = Counts(
        samples=samples,
        features=[row[:-1] for row in rows],
        missing=[row[-1] for row in rows],
        predictions=apportion(evaluated.predictions, samples),
        confidence=apportion(evaluated.confidence, samples),
        confidence_sum=min(total, samples * profile.CONFIDENCE_UNIT),
    )
    return Reference(spec=spec, counts=profile.check_counts(spec, counts))


def apportion(counts: Sequence[int], total: int) -> list[int]:
    """Scale integer counts so that they add up to `total`: largest remainders, ties to the first.

    Args:
        counts: not negative, not all zero.
        total: at most their sum.
    """
    whole = sum(counts)
    shares = [divmod(count * total, whole) for count in counts]
    result = np.asarray([share for share, _ in shares])
    rest = total - int(result.sum())
    for index in sorted(range(len(shares)), key=lambda i: -shares[i][1])[:rest]:
        result[index] += 1
    return [int(count) for count in result]
