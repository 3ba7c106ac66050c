"""The process that writes ONNX, with torch as Keras' backend: see `compression.lanes.onnx`."""

import sys
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cloud.learning import metrics, weights
from cloud.learning.task import load_task
from compression.errors import ConversionError
from compression.lanes import onnx as lane
from contract import tensors

_PACKAGES = "pip install 'fieldfare[onnx]'"


def main(folder: Path) -> None:
    """Do what the folder's request says, and leave the model and the answer there."""
    request = msgspec.json.decode((folder / lane.REQUEST).read_bytes(), type=lane.Request)
    shown = tensors.load((folder / lane.SHOWN).read_bytes())
    model = weights.build(load_task(request.task), seed=0)
    weights.put(model, tensors.load((folder / lane.WEIGHTS).read_bytes()))
    path = folder / lane.MODEL
    expected = np.asarray(model(shown["x"], training=False).detach())
    _write(model, path)
    opset = _describe(path, request.metadata)
    found = _run(path, shown["x"])
    difference = float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))
    if not difference <= lane.TOLERANCE:
        raise ConversionError(
            f"onnxruntime's answers differ from the model's by {difference:.2g} of the largest logit, "
            f"{lane.TOLERANCE:g} is allowed"
        )
    answer = lane.Exported(
        bytes=path.stat().st_size,
        opset=opset,
        largest_difference=difference,
        samples=len(found),
        accuracy=metrics.accuracy(found, shown["y"]),
    )
    (folder / lane.ANSWER).write_bytes(msgspec.json.encode(answer))


def _write(model: Any, path: Path) -> None:
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of each shape that it takes as fixed, and it may
        try:
            model.export(path, format="onnx", verbose=False)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0][:300]
            raise ConversionError(f"Keras cannot write this model: {type(error).__name__}: {reason}") from error


def _describe(path: Path, metadata: dict[str, str]) -> int:
    """Write metadata into the file; its operators' version."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return max(entry.version for entry in model.opset_import if not entry.domain)


def _run(path: Path, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed: {_PACKAGES}")
    except ConversionError as error:
        sys.exit(str(error))
