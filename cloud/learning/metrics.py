"""Metrics of a classifier's logits, in float64."""

import numpy as np


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities of logits (n, classes) divided by `temperature`."""
    scaled = np.asarray(logits, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def accuracy(logits: np.ndarray, y: np.ndarray) -> float:
    """Part of samples whose top class is right; NaN without samples."""
    return float((logits.argmax(axis=1) == y).mean()) if len(y) else float("nan")


def cross_entropy(logits: np.ndarray, y: np.ndarray, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood in nats."""
    scaled = np.asarray(logits, np.float64) / temperature
    top = scaled.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(scaled - top).sum(axis=1)) + top[:, 0]
    return float((log_sum - scaled[np.arange(len(y)), y]).mean())


def calibration_error(probabilities: np.ndarray, y: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error over equal bins of the top probability (Guo et al. 2017, arXiv:1706.04599, eq. 3)."""
    top = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == y
    index = np.minimum((top * bins).astype(int), bins - 1)
    samples = np.bincount(index, minlength=bins)
    gaps = np.abs(np.bincount(index, top, bins) - np.bincount(index, right, bins))
    return float(gaps[samples > 0].sum() / max(len(y), 1))


def by_group(logits: np.ndarray, y: np.ndarray, group: np.ndarray) -> dict[str, float]:
    """Accuracy for each group (device), names sorted."""
    return {str(name): accuracy(logits[group == name], y[group == name]) for name in np.unique(group)}
