"""What is said of a `.tflite` is what is in it, and what the runtime refuses is refused with its reason."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from compression import inspection, trial
from compression.cli import app
from compression.errors import ArtifactError
from tests.fakes.real_models import read

FILES = {  # quantization, parameters, newest of an operation that it has
    "mlperf_tiny/pretrainedResnet.tflite": ("float32", 77_708, ("CONV_2D", 9)),
    "mlperf_tiny/pretrainedResnet_quant.tflite": ("int8", 77_708, ("SOFTMAX", 1)),
    "mlperf_tiny/kws_ref_model_float32.tflite": ("mixed", 22_606, ("DEPTHWISE_CONV_2D", 4)),
    "mlperf_tiny/vww_96_int8.tflite": ("int8", 210_852, ("DEPTHWISE_CONV_2D", 13)),
    "mlperf_tiny/ad01_fp32.tflite": ("float32", 265_864, ("FULLY_CONNECTED", 10)),
    "tflite_micro/trained_lstm_int8.tflite": ("int8", 9_532, ("UNIDIRECTIONAL_SEQUENCE_LSTM", 1)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_described(name: str) -> None:
    quantization, parameters, (operation, count) = FILES[name]
    content = read(name)
    found = inspection.inspect(content)
    assert (found.bytes, found.quantization, found.parameters) == (len(content), quantization, parameters)
    assert {each.name: each.count for each in found.operations}[operation] == count
    assert found.custom == []
    assert found.min_runtime
    text = "\n".join(inspection.lines(found))
    assert operation in text
    assert f"{len(content):,} bytes" in text
    assert trial.refusal(content) == ""


def test_input_and_output_have_their_scales() -> None:
    found = inspection.inspect(read("mlperf_tiny/pretrainedResnet_quant.tflite"))
    [taken], [given_] = found.inputs, found.outputs
    assert (taken.dtype, taken.shape, taken.scale, taken.zero_point) == ("int8", [-1, 32, 32, 3], 1.0, -128)
    assert (given_.dtype, given_.shape, given_.scale) == ("int8", [-1, 10], 1 / 256)


def test_operations_that_are_not_builtin_are_named_and_the_runtime_refuses_them() -> None:
    content = read("tflite_micro/audio_preprocessor_int8.tflite")
    assert "SignalWindow" in inspection.inspect(content).custom
    assert "unresolved custom op: SignalWindow" in trial.refusal(content)


def test_a_file_that_can_be_read_may_be_refused_by_the_runtime() -> None:
    content = read("tflite_micro/person_detect.tflite")
    assert inspection.inspect(content).quantization == "int8"
    assert "quantized_dimension must be in range" in trial.refusal(content)


@pytest.mark.parametrize("content", [b"", b"short", b"PK\x03\x04 a zip", bytes(100)])
def test_what_is_no_tflite_is_refused(content: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"not a .tflite"):
        inspection.inspect(content)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_file_that_ends_early_is_refused(share: float) -> None:
    content = read("mlperf_tiny/pretrainedResnet_quant.tflite")
    cut = content[: int(share * len(content))]
    with pytest.raises(ArtifactError, match=r"not a .tflite that can be read"):
        inspection.inspect(cut)
    assert trial.refusal(cut)


@given(st.binary(max_size=300))
def test_no_bytes_lead_to_anything_but_an_answer_or_a_refusal(rest: bytes) -> None:
    content = struct.pack("<I4s", 8, b"TFL3") + rest
    try:
        inspection.inspect(content)
    except ArtifactError as error:
        assert "not a .tflite" in str(error)  # noqa: PT017


def test_the_command_shows_what_is_there_and_whether_the_runtime_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "person.tflite"
    path.write_bytes(read("tflite_micro/person_detect.tflite"))
    shown = CliRunner().invoke(app, ["inspect", str(path)])
    assert shown.exit_code == 0
    assert "14 DEPTHWISE_CONV_2D" in shown.output
    assert "runtime    refuses it: " in shown.output
    found = json.loads(CliRunner().invoke(app, ["inspect", str(path), "--json"]).output)
    assert found["parameters"] == 210_708
    assert "quantized_dimension" in found["refused"]
    missing = CliRunner().invoke(app, ["inspect", str(tmp_path / "none.tflite")])
    assert isinstance(missing.exception, ArtifactError)
    assert "none.tflite: cannot be read: No such file" in str(missing.exception)
