"""The search against each technique alone: tfmot's by its guides, ai-edge-quantizer's by its own recipes.

Theirs come first, with as many epochs of fine-tuning as the search gives a stage at most. Training alone makes some of
them more accurate than float, so the search is asked for the smallest artifact that is as accurate as the best of them
on the validation samples. Both sides are looked at on the test samples, once, after that.
"""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import compression_models
from benchmarks.results import Row
from cloud import features
from cloud.learning import weights
from cloud.learning.task import load_task
from compression import candidate, intervals, tuning
from compression import measure as measuring
from compression.measure import Judge
from compression.search import budget, study
from compression.source import Source
from compression.stage import Workbench, Workpiece
from contract import transform

SECONDS = 15 * 60
EPOCHS = 9  # of peers' fine-tuning
LEARNING_RATE = 3e-4  # of peers' fine-tuning
CALIBRATION_SAMPLES = 200


def measure(folder: Path, *, quick: bool) -> list[Row]:
    """One pair of rows a technique: bytes on the way, and accuracy that the search's artifact loses to it."""
    from cloud.learning.backend import use_tensorflow

    use_tensorflow()
    origin = _digits() if quick else compression_models.trained("fashion_mnist", 0)
    model = weights.build(origin.task, seed=0)
    weights.put(model, origin.weights)
    from compression import convert

    base = convert.to_float(model)
    judge = Judge(origin, base)
    peers = _peers(origin, base, 3 if quick else EPOCHS)
    limit = budget.parse(f"drop<={100 * _limit(judge, peers):.3f}pt")
    print(f"asked for: drop<={100 * limit.terms[0].most:.3f}pt", flush=True)
    begun = time.monotonic()
    found = study.run(
        origin,
        judge,
        limit,
        folder=folder / "search",
        seconds=120 if quick else SECONDS,
        trials=14 if quick else 1000,
        on_progress=lambda done, phrase, best: print(f"{done:4.0%} {phrase}  [{best}]", flush=True),
    )
    seconds = time.monotonic() - begun
    if found.chosen is None:
        raise SystemExit(found.shortfall)
    ours = found.chosen.content
    rows = [Row("search: until the front is measured", "s", seconds, goal=SECONDS + 60)]
    rows.append(Row("search: chosen against float, zstd", "bytes", _bytes(ours), _bytes(base)))
    rows.append(Row("search: chosen, test accuracy lost to float", "pt", 100 * (found.chosen.report.test_drop or 0.0)))
    right = _right(ours, origin)
    for name, content in peers.items():
        theirs = _bytes(content)
        lost = intervals.drop(_right(content, origin), right)
        rows.append(Row(f"{name}, zstd", "bytes", _bytes(ours), theirs, goal=theirs))
        rows.append(Row(f"{name}: accuracy lost to it, low end of the interval", "pt", 100 * lost.low, goal=0.0))
    return rows


def _limit(judge: Judge, peers: dict[str, bytes]) -> float:
    """What the search is asked to keep: to be as accurate on the validation samples as the best of all techniques.

    Half of the upper half of that technique's interval is allowed on top: what is asked of the search is held to the
    upper end of its own interval.
    """
    best = min((judge.validation(content) for content in peers.values()), key=lambda report: report.drop)
    return best.drop_high + (best.drop_high - best.drop) / 2


def _digits() -> Source:
    from cloud.training import fit

    task = load_task("digits")
    data = task.load_data()
    x = transform.Transform(features.fit(task, data["x"][data["part"] == "train"])).apply(data["x"])
    fitted = fit.fit(task, data, x, epochs=task.training.epochs, seed=0, on_epoch=lambda _epoch, _loss: None)
    return compression_models.source(task, fitted.weights, data)


def _bytes(content: bytes) -> int:
    return measuring.sizes(content).zstd


def _right(content: bytes, origin: Source) -> np.ndarray:
    return np.asarray(Judge.logits(content, origin.test).argmax(axis=1) == origin.test.y)


def _peers(origin: Source, base: bytes, epochs: int) -> dict[str, bytes]:
    """Artifacts of every technique alone, by name."""
    bench = candidate.bench(origin, seed=0, on_stage=lambda _phrase: None)
    found = {f"ai-edge-quantizer {name}": _quantized(base, name, origin) for name in _RECIPES}
    for name, technique in _TFMOT.items():
        with tuning.quiet():
            found[f"tfmot {name}"] = _default(technique(bench, epochs))
    return found


_RECIPES = (
    "dynamic_wi8_afp32",
    "dynamic_wi4_afp32",
    "weight_only_wi8_afp32",
    "weight_only_wi4_afp32",
    "static_wi8_ai8",
)


def _quantized(base: bytes, name: str, origin: Source) -> bytes:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    made = quantizer.Quantizer(bytearray(base))
    made.load_quantization_recipe(getattr(recipe, name)())
    calibrated = None
    if made.need_calibration:
        (signature, io), *_ = Interpreter(model_content=base).get_signature_list().items()
        samples = [{io["inputs"][0]: x[None]} for x in origin.train.x[:CALIBRATION_SAMPLES]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # calibration keeps every tensor, and says what that costs
            calibrated = made.calibrate({signature: samples})
    quantized = made.quantize(calibrated, enable_progress_bar=False, enable_progress_report=False)
    return bytes(quantized.quantized_model)


def _pruned(bench: Workbench, epochs: int) -> Any:
    """https://www.tensorflow.org/model_optimization/guide/pruning/pruning_with_keras: from 50 to 80 % zeros."""
    import tensorflow_model_optimization as tfmot

    kinds, model = tfmot.sparsity.keras, tuning.copy(tuning.tf_keras_model(Workpiece(), bench))
    end = epochs * -(-len(bench.train.x) // tuning.BATCH)
    wrapped = kinds.prune_low_magnitude(model, pruning_schedule=kinds.PolynomialDecay(0.5, 0.8, 0, end))
    _fit(wrapped, bench, epochs, [kinds.UpdatePruningStep()])
    return kinds.strip_pruning(wrapped)


def _clustered(bench: Workbench, epochs: int) -> Any:
    """https://www.tensorflow.org/model_optimization/guide/clustering/clustering_example: 16 values."""
    import tensorflow_model_optimization as tfmot

    kinds, model = tfmot.clustering.keras, tuning.copy(tuning.tf_keras_model(Workpiece(), bench))
    init = kinds.CentroidInitialization.KMEANS_PLUS_PLUS
    wrapped = kinds.cluster_weights(model, number_of_clusters=16, cluster_centroids_init=init)
    _fit(wrapped, bench, epochs, [])
    return kinds.strip_clustering(wrapped)


def _aware(bench: Workbench, epochs: int) -> Any:
    """https://www.tensorflow.org/model_optimization/guide/quantization/training_example."""
    import tensorflow_model_optimization as tfmot

    aware = tfmot.quantization.keras.quantize_model(tuning.copy(tuning.tf_keras_model(Workpiece(), bench)))
    _fit(aware, bench, epochs, [])
    return aware


_TFMOT: dict[str, Callable[[Workbench, int], Any]] = {
    "pruning 80 %": _pruned,
    "clustering 16": _clustered,
    "QAT": _aware,
}


def _fit(model: Any, bench: Workbench, epochs: int, callbacks: list[Any]) -> None:
    tuning.fit(model, bench, epochs=epochs, learning_rate=LEARNING_RATE, callbacks=callbacks)


def _default(model: Any) -> bytes:
    """As each guide converts: the converter's default optimisation."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return bytes(converter.convert())
