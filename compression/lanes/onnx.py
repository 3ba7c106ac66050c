"""ONNX out, for servers: a version as `.onnx` with a free batch, checked in onnxruntime before it is given away.

torch's exporter writes a torch task's module, and Keras' model on the torch backend, which is chosen once a process: a
child does it (`python -m compression.lanes.onnx_child FOLDER`). Weights and samples travel as safetensors.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from compression.errors import ConversionError
from compression.source import Source
from contract import tensors

SAMPLES = 256  # of the validation part, for the check
TOLERANCE = 1e-4  # of a logit, relative to the largest: both sum float32 in orders of their own
REQUEST, WEIGHTS, SHOWN, MODEL, ANSWER = "request.json", "weights.safetensors", "x.safetensors", "m.onnx", "answer.json"


class Request(msgspec.Struct, frozen=True):
    """What the child is to do: the task to build, and what the file says of itself."""

    task: str
    metadata: dict[str, str]


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What was exported.

    Attributes:
        bytes: of the file; `opset` of ONNX's operators.
        largest_difference: of a logit, the model beside onnxruntime, relative to the largest logit.
        samples: that it was checked on.
        accuracy: of the file on them, in onnxruntime.
    """

    bytes: int
    opset: int
    largest_difference: float
    samples: int
    accuracy: float


def export(origin: Source, path: Path) -> Exported:
    """Write a version as ONNX; the file is whole and checked, or not there.

    Args:
        origin: a version with its task and data.
        path: of the file.

    Raises:
        ConversionError: packages that are not installed, a layer that cannot be written, a batch that is fixed,
            or answers that differ.
    """
    about = {
        "model": origin.version.model,
        "version": str(origin.version.version),
        "labels": "\n".join(origin.task.labels),
        "transform_sha256": origin.transform.spec.digest(),
        "weights_sha256": origin.version.weights_sha256,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / REQUEST).write_bytes(msgspec.json.encode(Request(origin.task.ref, about)))
        (folder / WEIGHTS).write_bytes(tensors.dump(origin.weights))
        shown = origin.validation
        (folder / SHOWN).write_bytes(tensors.dump({"x": shown.x[:SAMPLES], "y": shown.y[:SAMPLES]}))
        environment = {**os.environ, "KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "compression.lanes.onnx_child", str(folder)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        if done.returncode or not (folder / ANSWER).exists():
            said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise ConversionError(f"onnx: {said[-1][:500]}")
        answer = msgspec.json.decode((folder / ANSWER).read_bytes(), type=Exported)
        part = path.with_name(path.name + ".part")
        part.write_bytes((folder / MODEL).read_bytes())
        part.replace(path)
    return answer


def no_way_in(name: str) -> str:
    """Why an ONNX file becomes no `.tflite`, and what to bring instead."""
    return (
        f"{name}: no converter from ONNX to TFLite works with today's operators and packages; bring the model as a "
        "Keras or torch task, or as a .tflite"
    )
