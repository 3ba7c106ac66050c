"""Patches to a fine-tuned model, as a share of the file: ours, bsdiff4, and the whole file by Zstandard.

The Fashion-MNIST model, one epoch of SGD at 0.01 on 600 samples; and the same model with a quarter of its first
filters cut, where no piece has its old length.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.results import Row
from contract import delta
from coordinator.deltas.alignment import align

SAMPLES, RATE = 600, 0.01
GOALS = {"int8": 8.0}  # percent of the file


def measure(folder: Path, *, quick: bool) -> list[Row]:
    """Every kind of file, whatever `quick`: it takes a minute at most."""
    import bsdiff4
    import zstandard

    command = [sys.executable, "-m", "benchmarks.compression_deltas", str(folder)]
    subprocess.run(command, check=True, capture_output=quick)
    rows = []
    for kind in ("int8", "float16", "float", "int8-cut"):
        old, new = ((folder / f"{kind}.{when}.tflite").read_bytes() for when in ("old", "new"))
        patch, whole = delta.make(old, new, align), delta.make(b"", new)
        assert _applied(patch, old, len(new)) == new
        ours = 100 * min(len(patch), len(whole)) / len(new)
        theirs = 100 * len(bsdiff4.diff(old, new)) / len(new)
        full = 100 * len(zstandard.ZstdCompressor(level=19).compress(new)) / len(new)
        rows.append(
            Row(f"patch, {kind}, {len(new):,} bytes; peer: bsdiff4", "% of the file", ours, theirs, GOALS.get(kind))
        )
        rows.append(Row("  the same; peer: the whole file by zstd 19", "% of the file", ours, full))
    return rows


def _applied(patch: bytes, base: bytes, limit: int) -> bytes:
    pieces = delta.apply(patch, lambda at, size: base[at : at + size], base_size=len(base), limit=limit)
    return b"".join(pieces)


def main() -> None:
    """Train and convert, in a process of its own."""
    from benchmarks import compression_models
    from cloud.learning.backend import use_tensorflow

    source = compression_models.trained("fashion_mnist", 0)
    use_tensorflow()
    import keras

    from cloud.learning import weights
    from compression import convert

    folder, x, y = Path(sys.argv[1]), source.train.x, source.train.y
    kinds = {"int8": lambda model: convert.to_int8(model, x), "float16": convert.to_float16, "float": convert.to_float}
    model = weights.build(source.task, seed=0)
    weights.put(model, source.weights)

    def write(when: str) -> None:
        for kind, make in kinds.items():
            (folder / f"{kind}.{when}.tflite").write_bytes(make(model))

    write("old")
    model.compile(keras.optimizers.SGD(RATE), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x[:SAMPLES], y[:SAMPLES], batch_size=32, verbose=0)
    write("new")
    (folder / "int8-cut.old.tflite").write_bytes((folder / "int8.old.tflite").read_bytes())
    (folder / "int8-cut.new.tflite").write_bytes(convert.to_int8(_cut(keras, model), x))


def _cut(keras: Any, model: Any) -> Any:
    """The model without a quarter of its first convolution's filters."""
    config = model.get_config()
    first = next(layer for layer in config["layers"] if layer["class_name"] == "Conv2D")
    kept = first["config"]["filters"] * 3 // 4
    first["config"]["filters"] = kept
    for layer in config["layers"]:
        layer.pop("build_config", None)  # shapes of before
    small = keras.Sequential.from_config(config)
    small.set_weights(
        [
            old[tuple(slice(size) for size in new.shape)]
            for old, new in zip(model.get_weights(), small.get_weights(), strict=True)
        ]
    )
    return small


if __name__ == "__main__":
    main()
