"""ONNX out: the same answers for any batch, what the file says of itself, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from cloud.learning import torch_model
from cloud.learning.backend import use_tensorflow
from cloud.learning.task import load_task
from compression import imported_cli, request
from compression.errors import ArtifactError, ConversionError, RecipeError
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

TORCH = """
from fieldfare.digits.task import load_data

def build_model(torch):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = torch.nn.Linear(64, 10)

        def forward(self, x):
            BODY

    return Odd()
"""
TORCH_DIGITS = Path(__file__).parents[3] / "examples" / "torch_digits"


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
    odd = dataclasses.replace(origin, version=version, task=load_task(str(folder)), weights=weights)
    with pytest.raises(ConversionError, match=r"^onnx: Keras cannot write this model: .*$"):
        lane.export(odd, tmp_path / "m.onnx")
    assert not list(tmp_path.glob("m.onnx*"))


def test_weights_of_another_model_are_refused(origin: Source, tmp_path: Path) -> None:
    other = dataclasses.replace(origin, weights={"a": np.zeros(3, np.float32)})
    with pytest.raises(ConversionError, match="onnx: "):
        lane.export(other, tmp_path / "m.onnx")


def torch_origin(origin: Source, ref: Path) -> Source:
    """The same samples, for a torch task with the weights of an initializer."""
    task = load_task(str(ref))
    return dataclasses.replace(origin, task=task, weights=torch_model.get(torch_model.build(task, seed=3)))


def test_a_torch_module_answers_the_same_for_any_batch(origin: Source, tmp_path: Path) -> None:
    mine = torch_origin(origin, TORCH_DIGITS)
    told = lane.export(mine, tmp_path / "m.onnx")
    assert told.largest_difference <= lane.TOLERANCE
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    module = torch_model.build(mine.task, seed=0)
    torch_model.put(module, mine.weights)
    for count in (1, 7):
        x = mine.validation.x[:count]
        np.testing.assert_allclose(
            session.run(["logits"], {"x": x})[0], torch_model.logits(module, x), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return self.dense(x.reshape(len(x), 64)) * (1 if len(x) in (1, 2, 256) else 0)", "had to fix the batch"),
        ("return self.dense(torch.special.i1e(x).reshape(-1, 64))", "torch.onnx cannot write this model: .*bessel_i1e"),
        (
            "return self.dense(x.reshape(-1, 64)) * (2.0 if torch.compiler.is_exporting() else 1.0)",
            "onnxruntime's answers differ from the model's by .* of the largest logit, 0.0001 is allowed",
        ),
    ],
)
def test_a_module_that_cannot_be_written_or_answers_otherwise_is_refused(
    origin: Source, tmp_path: Path, body: str, message: str
) -> None:
    (tmp_path / "fieldfare.toml").write_text((TORCH_DIGITS / "fieldfare.toml").read_text())
    (tmp_path / "task.py").write_text(TORCH.replace("BODY", body))
    with pytest.raises(ConversionError, match=message):
        lane.export(torch_origin(origin, tmp_path), tmp_path / "m.onnx")
    assert not list(tmp_path.glob("m.onnx*"))


def test_an_onnx_file_brought_in_is_refused_with_the_reason_and_what_to_bring(tmp_path: Path) -> None:
    reason = "no converter from ONNX to TFLite works .* bring the model as a Keras or torch task, or as a .tflite"
    client: Any = None  # refused before the coordinator is asked
    with pytest.raises(RecipeError, match=f"m.onnx: {reason}"):
        request.model_version(client, "m.onnx")
    with pytest.raises(ArtifactError, match=f"m.onnx: {reason}"):
        imported_cli.inspect(tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match=f"m.onnx: {reason}"):
        imported_cli.bring_in(tmp_path / "m.onnx", model="m", task="fieldfare.digits")
