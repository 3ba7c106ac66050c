"""ONNX out: the same answers for any batch, what the file says of itself, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from cloud.learning.backend import use_tensorflow
from compression.errors import ConversionError
from compression.lanes import onnx as lane
from compression.source import Part, Source
from contract.transform import Transform, TransformSpec
from coordinator.client import Version
from tests.fakes import digits_bench

pytestmark = pytest.mark.slow
ODD = """
from fieldfare.digits.task import load_data

def build_model(keras):
    class Odd(keras.layers.Layer):
        def call(self, x):
            return __import__("torch").special.i1e(x) if keras.backend.backend() == "torch" else x
    return keras.Sequential([keras.Input((8, 8, 1)), Odd(), keras.layers.Flatten(), keras.layers.Dense(10)])
"""


@pytest.fixture(scope="module")
def origin() -> Source:
    use_tensorflow()
    bench = digits_bench.trained(epochs=5)
    x, y = bench.validation.x, bench.validation.y
    part = Part(x, x, y, np.full(len(y), "lab"))
    version = Version(model="digits", version=7, created_at=0.0, task="digits", weights_sha256="a" * 64)
    executor = Transform(TransformSpec(input_shape=[8, 8, 1], steps=[], features=[]))
    return Source(version, bench.task, bench.weights, executor, part, part, part)


def test_the_file_answers_like_the_model_for_any_batch_and_says_what_it_is(origin: Source, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    told = lane.export(origin, path)
    assert told.largest_difference <= lane.TOLERANCE
    assert told.samples == len(origin.validation.y)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [given] = session.get_inputs()
    whole = session.run(None, {given.name: origin.validation.x})[0]
    single = session.run(None, {given.name: origin.validation.x[:1]})[0]
    np.testing.assert_allclose(whole[:1], single, rtol=1e-4, atol=1e-4)
    assert (whole.argmax(axis=1) == origin.validation.y).mean() == pytest.approx(told.accuracy)
    props = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    assert (props["model"], props["version"]) == ("digits", "7")
    assert props["labels"].splitlines() == list("0123456789")
    assert props["transform_sha256"] == origin.transform.spec.digest()


def test_a_model_that_cannot_be_written_is_refused_in_a_line_and_leaves_no_file(origin: Source, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    text = (origin.task.folder / "fieldfare.toml").read_text()
    (folder / "fieldfare.toml").write_text(text)
    (folder / "task.py").write_text(ODD)
    version: Any = Version(model="odd", version=1, created_at=0.0, task=str(folder), weights_sha256="a" * 64)
    weights = {
        "sequential/dense/kernel": np.zeros((64, 10), np.float32),
        "sequential/dense/bias": np.zeros(10, np.float32),
    }
    odd = dataclasses.replace(origin, version=version, weights=weights)
    with pytest.raises(ConversionError, match=r"^onnx: Keras cannot write this model: .*$"):
        lane.export(odd, tmp_path / "m.onnx")
    assert not list(tmp_path.glob("m.onnx*"))


def test_weights_of_another_model_are_refused(origin: Source, tmp_path: Path) -> None:
    other = dataclasses.replace(origin, weights={"a": np.zeros(3, np.float32)})
    with pytest.raises(ConversionError, match="onnx: "):
        lane.export(other, tmp_path / "m.onnx")
