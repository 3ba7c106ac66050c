"""What a teacher is worth: a student with 10 % of the labels, with its logits and without, at equal optimiser steps."""

import dataclasses
import math
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks import compression_models
from benchmarks.results import Row
from cloud.learning import metrics
from compression import candidate, recipe
from compression.measure import Judge
from compression.recipe import Recipe
from compression.source import Source
from compression.stage import Workpiece
from compression.stages.distillation import Distill
from compression.stages.post_training import Float

SEEDS, QUICK_SEEDS = 5, 3
SAMPLES, LABELS = 6000, 0.1
WIDTH = 0.25
EPOCHS, QUICK_EPOCHS = 10, 3


def measure(folder: Path, *, quick: bool) -> list[Row]:
    """Accuracy on the 10,000 test images of Fashion-MNIST; the interval is Student's over paired seeds."""
    from cloud.learning.backend import use_tensorflow

    use_tensorflow()
    seeds = QUICK_SEEDS if quick else SEEDS
    taught, alone = np.zeros(seeds), np.zeros(seeds)
    for seed in range(seeds):
        origin = compression_models.trained("fashion_mnist", 0)
        rows = np.random.default_rng(seed).permutation(len(origin.train.y))[:SAMPLES]
        part = dataclasses.replace(
            origin.train, **{name: getattr(origin.train, name)[rows] for name in ("raw", "x", "y", "device")}
        )
        origin = dataclasses.replace(origin, train=part)
        epochs = QUICK_EPOCHS if quick else EPOCHS
        taught[seed] = _accuracy(origin, Distill(width=WIDTH, labels=LABELS, epochs=epochs), seed)
        alone[seed] = _accuracy(origin, Distill(width=WIDTH, labels=LABELS, epochs=epochs, alpha=1.0), seed)
    gain = 100 * (taught - alone)
    half = float(stats.t.ppf(0.975, seeds - 1)) * float(gain.std(ddof=1)) / math.sqrt(seeds)
    what = f"student of {WIDTH:g} width, {LABELS:.0%} of {SAMPLES} labels, {seeds} seeds, equal steps"
    return [
        Row(f"{what}: test error with a teacher; peer: without", "%", *(100 - 100 * a.mean() for a in (taught, alone))),
        Row(f"{what}: points lost by having a teacher, mean", "points", -float(gain.mean())),
        Row("... lower end of the 95 % interval", "points", -float(gain.mean()) - half),
        Row("... upper end of the 95 % interval", "points", -float(gain.mean()) + half, goal=0.0),
    ]


def _accuracy(origin: Source, stage: Distill, seed: int) -> float:
    bench = candidate.bench(origin, seed=seed, on_stage=lambda _phrase: None)
    content = recipe.make(Recipe(name="student", stages=[stage, Float()], seed=seed), Workpiece(), bench).artifact
    assert content is not None
    return metrics.accuracy(Judge.logits(content, origin.test), origin.test.y)
