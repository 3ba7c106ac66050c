"""What cutting filters does to latency: the Fashion-MNIST network with all of its filters and with half of them."""

from pathlib import Path

from benchmarks import compression_models
from benchmarks.results import Row
from compression import candidate, recipe
from compression.measure import Judge
from compression.stage import Workpiece
from compression.stages.post_training import Float, Int8
from compression.stages.shrinking import FilterPrune

KEEP = 0.5
SAMPLES, QUICK_SAMPLES = 20000, 5000
EPOCHS, QUICK_EPOCHS = 4, 1
FASTER = 1.5  # at least: a convolution of half the filters on half the channels does a quarter of the work


def measure(folder: Path, *, quick: bool) -> list[Row]:
    """p50 in the agent's runtime on one thread, and accuracy on the 10,000 test images."""
    from cloud.learning.backend import use_tensorflow

    use_tensorflow()
    origin = compression_models.trained("fashion_mnist", 0, train_samples=QUICK_SAMPLES if quick else SAMPLES)
    bench = candidate.bench(origin, seed=0, on_stage=lambda _phrase: None)
    full = recipe.run_stage(Float(), Workpiece(_whole(bench)), bench).artifact
    cut = recipe.run_stage(FilterPrune(keep=KEEP, epochs=QUICK_EPOCHS if quick else EPOCHS), Workpiece(), bench)
    rows = []
    judge = Judge(origin, full or b"")
    peers = {"float": full, "int8": recipe.run_stage(Int8(), Workpiece(_whole(bench)), bench).artifact}
    for name, stage in (("float", Float()), ("int8", Int8())):
        content, peer = recipe.run_stage(stage, cut, bench).artifact or b"", judge.validation(peers[name] or b"")
        found = judge.test(judge.validation(content), content)
        what = f"Fashion-MNIST, {KEEP:.0%} of the filters, {name}"
        rows += [
            Row(f"{what}: p50, one thread; peer: all filters", "us", found.p50_us, peer.p50_us, peer.p50_us / FASTER),
            Row(f"{what}: bytes on the way; peer: all filters", "B", found.zstd_bytes, peer.zstd_bytes),
            Row(f"{what}: test accuracy lost against float with all filters", "points", 100 * (found.test_drop or 0.0)),
        ]
    return rows


def _whole(bench: candidate.Workbench) -> object:
    from compression import tuning

    with tuning.quiet():
        return tuning.tf_keras_model(Workpiece(), bench)
