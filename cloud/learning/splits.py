"""Splits that keep what belongs together on one side: two images of one meter are not independent."""

from collections.abc import Sequence

import numpy as np

from cloud.learning.task import PARTS


def by_group(group: np.ndarray, shares: Sequence[float], *, seed: int) -> np.ndarray:
    """Deal whole groups out to train, validation and test.

    Args:
        group: (n,) name of the group (device, patient, site) of each sample.
        shares: wanted parts of the samples, three numbers that add up to 1. Large groups make them inexact.
        seed: of the order in which groups are dealt.

    Returns:
        (n,) text: train, validation or test.

    Raises:
        ValueError: other shares, or fewer groups than shares that are not zero.
    """
    if len(shares) != len(PARTS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"shares {list(shares)}: expected three numbers from 0 up that add up to 1")
    names, members, sizes = np.unique(group, return_inverse=True, return_counts=True)
    if len(names) < np.count_nonzero(shares):
        raise ValueError(f"{len(names)} groups cannot fill {np.count_nonzero(shares)} parts")
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]  # largest first: the small ones even it out
    room = np.asarray(shares, float) * len(group)
    empty = [part for part in range(len(PARTS)) if shares[part]]
    part_of = np.zeros(len(names), int)
    for position, name in enumerate(order):
        must_fill = empty if len(order) - position <= len(empty) else range(len(PARTS))
        part = max(must_fill, key=lambda candidate: room[candidate])
        part_of[name] = part
        room[part] -= sizes[name]
        empty = [other for other in empty if other != part]
    return np.array(PARTS)[part_of[members]]
