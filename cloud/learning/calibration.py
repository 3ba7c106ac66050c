"""Temperature scaling: one number that makes confidence mean what it says (Guo et al. 2017, arXiv:1706.04599, 4.2)."""

import math

import numpy as np
from scipy.optimize import minimize_scalar

from cloud.learning.metrics import cross_entropy

LOWEST, HIGHEST = 0.05, 20.0  # beyond these the validation data say nothing


def temperature(logits: np.ndarray, y: np.ndarray) -> float:
    """The temperature with the least cross-entropy.

    Args:
        logits: (n, classes), of validation samples that the model was not trained on.
        y: (n,) classes.

    Raises:
        ValueError: no sample.
    """
    if not len(y):
        raise ValueError("temperature scaling needs validation samples, got none")
    found = minimize_scalar(
        lambda log: cross_entropy(logits, y, math.exp(log)),
        bounds=(math.log(LOWEST), math.log(HIGHEST)),
        method="bounded",
    )
    return float(math.exp(found.x))
