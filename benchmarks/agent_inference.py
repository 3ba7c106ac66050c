"""Transform, inference and profile update in one path, above the bare interpreter's set, invoke and get.

Both run the same model in the same process, in turn, block by block; what is told is the median over pairs of blocks,
of the thread's own processor time, so that other programs on the machine disturb as little as may be. Ours takes raw
samples (float64 readings, uint8 images); the bare interpreter is given model input that was made before.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import inference_models
from benchmarks.results import Row
from contract import bundle, codec, profile, tensors
from contract.messages import BundleRef
from contract.transform import (
    Clip,
    Column,
    Feature,
    Impute,
    Mean,
    Scale,
    Share,
    Sharpness,
    Spread,
    Transform,
    TransformSpec,
)
from edge_agent import lean
from edge_agent.runtime import Runtime, softmax
from edge_agent.runtime_backend import RuntimeOptions, interpreter
from edge_agent.serving import Model

BLOCK = 256  # inferences of one side before the other has its turn
IMAGE_FEATURES: list[Feature] = [
    Mean("brightness"),
    Spread("contrast"),
    Sharpness("sharpness"),
    Share("dark", None, 0.25),
    Share("dim", 0.25, 0.5),
    Share("light", 0.5, 0.75),
    Share("bright", 0.75, None),
]


def pack(content: bytes, spec: TransformSpec, raw: np.ndarray, classes: int) -> bytes:
    """A bundle around a model, its profile taken from `raw`."""
    executor = Transform(spec)
    x = executor.apply(raw)
    logits, features = Runtime(content).logits(x), executor.features(x)
    bins = profile.ProfileSpec(
        features=[
            profile.FeatureBins(name, profile.quantile_edges(column))
            for name, column in zip(executor.feature_names, features.T, strict=True)
        ],
        classes=classes,
        confidence_edges=profile.confidence_edges(),
    )
    manifest = bundle.Manifest(
        model="bench",
        version=1,
        variant="int8",
        labels=[str(index) for index in range(classes)],
        temperature=1.0,
        golden_tolerance=0.01,
        training=None,
        hardware_classes=[],
        min_agent_version="0.1.0",
        created_at=1_700_000_000,
    )
    counts = profile.count(bins, features, softmax(logits))
    files = {
        "inference": content,
        "transform": spec.encode(),
        "profile": codec.encode_json(profile.Reference(spec=bins, counts=counts)),
        "golden": tensors.dump({"x": raw[:16], "logits": logits[:16]}),
    }
    return bundle.pack(manifest, files)


def readings_bundle(folder: Path) -> tuple[bytes, np.ndarray]:
    """The model of 16 features with missing values filled in, limits and standardisation; and raw samples."""
    raw = inference_models.readings(BLOCK)
    steps = [Impute(0.0), Clip(-1000.0, 1000.0), Scale(raw.mean(axis=0).tolist(), raw.std(axis=0).tolist())]
    features: list[Feature] = [Column(f"sensor-{index}", index) for index in range(inference_models.FEATURES)]
    spec = TransformSpec(input_shape=[inference_models.FEATURES], steps=[*steps], features=features)
    return pack((folder / "readings.tflite").read_bytes(), spec, raw, 4), raw


def images_bundle(folder: Path, name: str = "fashion") -> tuple[bytes, np.ndarray]:
    """Fashion-MNIST, profiled by brightness, contrast, sharpness and a histogram of four shares; and raw images."""
    raw = inference_models.images("t10k")[0][:BLOCK]
    spec = TransformSpec(input_shape=[28, 28, 1], steps=[Scale([0.0], [255.0])], features=IMAGE_FEATURES)
    return pack((folder / f"{name}.tflite").read_bytes(), spec, raw, 10), raw


def compare(data: bytes, raw: np.ndarray, *, blocks: int) -> tuple[float, float, float]:
    """Microseconds an inference: ours, the bare interpreter's, and the median of the differences."""
    parts = bundle.unpack(data)
    content = parts.files["inference"]
    model = Model(BundleRef(model="bench", version=1, variant="int8", target="", sha256=""), parts, RuntimeOptions())
    bare = interpreter(content, RuntimeOptions())
    bare.allocate_tensors()
    (given,), (taken,) = bare.get_input_details(), bare.get_output_details()
    inputs = list(Runtime(content).quantize(parts.transform.apply(raw))[:, None])
    samples, set_to, get_from = list(raw), given["index"], taken["index"]

    def ours() -> None:
        step = model.step
        for sample in samples:
            step(sample)

    def theirs() -> None:
        put, invoke, get = bare.set_tensor, bare.invoke, bare.get_tensor
        for x in inputs:
            put(set_to, x)
            invoke()
            get(get_from)

    pairs = [(_microseconds(ours), _microseconds(theirs)) for _ in range(2 + blocks)][2:]
    bare.set_tensor(set_to, inputs[-1])
    bare.invoke()
    assert (model.step(samples[-1]) == bare.get_tensor(get_from)).all(), "the two do not agree"
    assert model.take().samples == (2 + blocks) * len(samples) + 1, "not every inference was counted"
    mine, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    return mine, other, statistics.median(a - b for a, b in pairs)


def _microseconds(block: Callable[[], None]) -> float:
    before = time.thread_time_ns()
    block()
    return (time.thread_time_ns() - before) / 1000 / BLOCK


def measure(folder: Path, *, quick: bool) -> list[Row]:
    """The small model, and the images' in two sizes."""
    inference_models.make(folder)
    lean.start()  # the allocator as the daemon has it
    blocks = 80 if quick else 300
    mine, other, above = compare(*readings_bundle(folder), blocks=blocks)
    size = (folder / "readings.tflite").stat().st_size / 1000
    rows = [
        Row(f"one path, int8 model of {size:.1f} KB, 16 features: an inference", "us", mine, other),
        Row("  above the bare interpreter", "us", above, goal=10.0),
    ]
    for name, what in (
        ("fashion", f"filters of 5x5 ({float((folder / 'fashion.txt').read_text()):.0%} right)"),
        ("fashion3", "filters of 3x3"),
    ):
        mine, other, above = compare(*images_bundle(folder, name), blocks=blocks)
        rows += [
            Row(f"one path, Fashion-MNIST int8 CNN, {what}: an inference", "us", mine, other),
            Row("  above the bare interpreter", "%", 100 * above / other, goal=20.0),
        ]
    return rows
