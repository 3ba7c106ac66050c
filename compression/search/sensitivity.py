"""Which layer costs accuracy: each kernel alone is quantized, pruned or clustered, without training, and looked at.

What is lost is measured twice: validation accuracy, and the divergence of the softmax from the float model's
(Kullback-Leibler), which tells layers apart with far fewer samples.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from compression.stage import OnStage, Samples

SAMPLES = 1000
BITS = (8, 4)
SPARSITIES = (0.5, 0.8, 0.9)
CLUSTERS = (32, 8)
FRAGILE = 0.05  # divergence (nats) above which a layer is said to be fragile
_ITERATIONS = 12  # of k-means; the loss hardly changes after


class LayerLoss(msgspec.Struct, frozen=True, kw_only=True):
    """What one layer alone costs.

    Attributes:
        layer: its name; `weights` is the length of its kernel.
        technique: `bits`, `sparsity` or `clusters`; `level` is how many, or which part.
        drop: validation accuracy lost, negative where it rose.
        divergence: mean Kullback-Leibler divergence in nats, 0 or more.
    """

    layer: str
    weights: int
    technique: str
    level: float
    drop: float
    divergence: float

    @property
    def words(self) -> str:
        """Technique and level for people."""
        return f"{self.level:.0%} zeros" if self.technique == "sparsity" else f"{self.level:g} {self.technique}"


def quantized(kernel: np.ndarray, bits: int) -> np.ndarray:
    """Symmetric integers for each output channel (the last axis), and back (Krishnamoorthi 2018, arXiv:1806.08342)."""
    axes = tuple(range(kernel.ndim - 1))
    largest = np.abs(kernel).max(axis=axes, keepdims=True)
    step = np.where(largest > 0, largest, 1) / (2 ** (bits - 1) - 1)
    return (np.rint(kernel / step) * step).astype(kernel.dtype)


def pruned(kernel: np.ndarray, sparsity: float) -> np.ndarray:
    """The part `sparsity` of smallest magnitude becomes zero."""
    count = int(sparsity * kernel.size)
    flat = kernel.ravel().copy()
    flat[np.argsort(np.abs(flat), kind="stable")[:count]] = 0
    return flat.reshape(kernel.shape)


def clustered(kernel: np.ndarray, clusters: int) -> np.ndarray:
    """At most so many values: k-means in one dimension, begun at the quantiles."""
    ordered = np.sort(kernel.ravel())
    sums = np.concatenate([[0.0], np.cumsum(ordered, dtype=np.float64)])
    centers = np.unique(np.quantile(ordered, (np.arange(clusters) + 0.5) / clusters))
    for _ in range(_ITERATIONS):
        edges = np.searchsorted(ordered, (centers[1:] + centers[:-1]) / 2)
        starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(ordered)]])
        full = ends > starts
        centers = (sums[ends[full]] - sums[starts[full]]) / (ends[full] - starts[full])
    nearest = np.searchsorted((centers[1:] + centers[:-1]) / 2, kernel.ravel())
    return centers[nearest].astype(kernel.dtype).reshape(kernel.shape)


def divergence(logits: np.ndarray, other: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of softmax(other) from softmax(logits), in nats."""
    log_p, log_q = (_log_softmax(each.astype(np.float64)) for each in (logits, other))
    return float(max(0.0, (np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


_TECHNIQUES: tuple[tuple[str, Sequence[float], Callable[[np.ndarray, Any], np.ndarray]], ...] = (
    ("bits", BITS, quantized),
    ("sparsity", SPARSITIES, pruned),
    ("clusters", CLUSTERS, clustered),
)


def measure(model: Any, samples: Samples, *, on_stage: OnStage = lambda _phrase: None) -> list[LayerLoss]:
    """Every layer that has a kernel (a weight of two or more dimensions), in the model's order.

    Args:
        model: Keras 3 or tf_keras; its weights are changed and put back.
        samples: validation samples; `SAMPLES` of them are used, evenly spaced.
        on_stage: hears which layer is looked at.
    """
    rows = np.linspace(0, len(samples.y) - 1, min(SAMPLES, len(samples.y))).astype(int)
    x, y = samples.x[rows], samples.y[rows]
    base = model.predict(x, batch_size=256, verbose=0)
    right = float((base.argmax(axis=1) == y).mean())
    found = []
    for layer in model.layers:
        before = layer.get_weights()
        if not any(value.ndim >= 2 for value in before):
            continue
        on_stage(f"looking at what layer {layer.name} can bear")
        for technique, level, change in ((name, level, of) for name, levels, of in _TECHNIQUES for level in levels):
            layer.set_weights([change(value, level) if value.ndim >= 2 else value for value in before])
            try:
                logits = model.predict(x, batch_size=256, verbose=0)
            finally:
                layer.set_weights(before)
            found.append(
                LayerLoss(
                    layer=layer.name,
                    weights=sum(int(value.size) for value in before if value.ndim >= 2),
                    technique=technique,
                    level=level,
                    drop=right - float((logits.argmax(axis=1) == y).mean()),
                    divergence=divergence(base, logits),
                )
            )
    return found


def fragile(losses: list[LayerLoss], technique: str, level: float, *, most: float = FRAGILE) -> list[str]:
    """Layers that a technique at a level costs more than `most` nats."""
    return [
        loss.layer
        for loss in losses
        if loss.technique == technique and loss.level == level and not loss.divergence <= most
    ]
