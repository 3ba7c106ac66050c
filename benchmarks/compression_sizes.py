"""How small Fashion-MNIST's and the activity model get at half a point of test accuracy, by ready recipes.

The recipe is chosen once, on validation samples, before; each seed trains its own float model. The test samples are
looked at once, at the end. Latency is the best of alternating rounds on one thread.
"""

from pathlib import Path
from typing import Any

from benchmarks.compression_models import trained
from benchmarks.results import Row
from compression import candidate, recipe
from compression import measure as measuring
from compression.measure import Judge, Report
from compression.source import Source
from compression.stage import Workpiece

SEEDS = (0, 1, 2)
TECHNIQUES: dict[str, list[dict[str, Any]]] = {
    "float16": [{"stage": "float16"}],
    "dynamic": [{"stage": "dynamic"}],
    "int8": [{"stage": "int8"}],
    "qat": [{"stage": "qat"}, {"stage": "int8"}],
    "prune 60 %": [{"stage": "prune"}, {"stage": "int8"}],
    "cluster 16": [{"stage": "cluster"}, {"stage": "int8"}],
    "mixed, int4 in dense layers": [{"stage": "float"}, {"stage": "mixed"}],
    "filter-prune 50 %": [{"stage": "filter-prune"}, {"stage": "int8"}],
}


def measure_group(name: str, which: str, seeds: tuple[int, ...], *, times: float, faster: float | None) -> list[Row]:
    """Rows of one model: each seed's own figures, held to the goals one by one."""
    rows = []
    for seed in seeds:
        source = trained(name, seed)
        base, made = _artifacts(source, [recipe.load(which)])
        judge = Judge(source, base)
        whole, small = (judge.test(judge.validation(content), content) for content in (base, made))
        what = f"{source.task.name} by `{which}`, seed {seed}"
        rows += [
            Row(f"{what}: float test accuracy, points below 91", "points", 91 - 100 * (whole.accuracy or 0), goal=0)
            if faster
            else Row(f"{what}: float test accuracy", "%", 100 * (whole.accuracy or 0)),
            Row(f"{what}: points of test accuracy lost", "points", 100 * (small.test_drop or 0), goal=0.5),
            Row(f"{what}: bytes on the way (zstd)", "B", small.zstd_bytes, whole.zstd_bytes, whole.zstd_bytes / times),
        ]
        if faster:
            ours, peer = _medians(made, base, source)
            rows.append(Row(f"{what}: median latency, float beside it", "us", ours, peer, peer / faster))
    return rows


def _artifacts(source: Source, recipes: list[recipe.Recipe]) -> list[bytes]:
    """The float artifact, then one of each recipe."""
    from cloud.learning import weights
    from cloud.learning.backend import use_tensorflow

    use_tensorflow()
    model = weights.build(source.task, seed=0)
    weights.put(model, source.weights)
    whole = recipe.from_fields({"name": "float", "stages": [{"stage": "float"}]}, "float")
    made = []
    for each in (whole, *recipes):
        bench = candidate.bench(source, seed=each.seed, on_stage=lambda _phrase: None)
        made.append(recipe.make(each, Workpiece(model), bench).artifact or b"")
    return made


def _medians(ours: bytes, peer: bytes, source: Source) -> tuple[float, float]:
    """Median latency of both in us, taking turns."""
    pairs = [tuple(measuring.latency(content, source.test.x).p50_us for content in (ours, peer)) for _ in range(5)]
    return min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)


def techniques(seed: int, *, train_samples: int | None) -> list[Row]:
    """Each single technique on Fashion-MNIST: for the page, without goals."""
    source = trained("fashion_mnist", seed, train_samples=train_samples)
    recipes = [
        recipe.from_fields({"name": f"t{number}", "stages": stages}, name)
        for number, (name, stages) in enumerate(TECHNIQUES.items())
    ]
    base, *made = _artifacts(source, recipes)
    judge = Judge(source, base)
    whole = judge.validation(base)
    rows = []
    for name, content in zip(TECHNIQUES, made, strict=True):
        found: Report = judge.test(judge.validation(content), content)
        what = f"fashion-mnist, {name} alone"
        rows.append(Row(f"{what}: bytes on the way (zstd)", "B", found.zstd_bytes, whole.zstd_bytes))
        rows.append(Row(f"{what}: points of test accuracy lost", "points", 100 * (found.test_drop or 0)))
        rows.append(Row(f"{what}: median latency", "us", found.p50_us, whole.p50_us))
    return rows


def measure(_folder: Path, *, quick: bool) -> list[Row]:
    """Every row."""
    seeds = SEEDS[:1] if quick else SEEDS
    rows = measure_group("fashion_mnist", "tiny", seeds, times=15, faster=3)
    rows += measure_group("har", "sensor-mlp", seeds, times=10, faster=None)
    return rows + techniques(0, train_samples=2000 if quick else 12000)
