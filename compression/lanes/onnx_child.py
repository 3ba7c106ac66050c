"""The process that writes ONNX, from a torch module or by Keras on torch: see `compression.lanes.onnx`."""

import sys
import warnings
from pathlib import Path

import msgspec
import numpy as np

from cloud.errors import TaskError
from cloud.learning import metrics, torch_model, weights
from cloud.learning.task import Task, load_task
from compression.errors import ConversionError
from compression.lanes import onnx as lane
from contract import tensors
from contract.errors import TensorError
from contract.tensors import Arrays

_PACKAGES = "pip install 'fieldfare[onnx]'"


def main(folder: Path) -> None:
    """Do what the folder's request says, and leave the model and the answer there."""
    request = msgspec.json.decode((folder / lane.REQUEST).read_bytes(), type=lane.Request)
    shown = tensors.load((folder / lane.SHOWN).read_bytes())
    path = folder / lane.MODEL
    arrays = tensors.load((folder / lane.WEIGHTS).read_bytes())
    expected = _write(load_task(request.task), arrays, path, shown["x"])
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


def _write(task: Task, arrays: Arrays, path: Path, x: np.ndarray) -> np.ndarray:
    """Write the file; the model's own logits of samples."""
    write = _torch if task.framework == "torch" else _keras
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of each shape that it takes as fixed, and it may
        return write(task, arrays, path, x)


def _keras(task: Task, arrays: Arrays, path: Path, x: np.ndarray) -> np.ndarray:
    model = weights.build(task, seed=0)
    weights.put(model, arrays)
    expected = np.asarray(model(x, training=False).detach())
    model.eval()
    try:
        model.export(path, format="onnx", verbose=False)
    except Exception as error:
        raise _refusal("Keras", error) from error
    return expected


def _torch(task: Task, arrays: Arrays, path: Path, x: np.ndarray) -> np.ndarray:
    import torch

    module = torch_model.build(task, seed=0)
    torch_model.put(module, arrays)
    expected = torch_model.logits(module, x)
    shown = torch.zeros((2, *task.input_shape))  # the exporter takes a batch of 1 for fixed
    free = ({0: torch.export.Dim("batch")},)
    names = {"input_names": ["x"], "output_names": ["logits"]}
    try:
        torch.onnx.export(module, (shown,), path, dynamic_shapes=free, external_data=False, verbose=False, **names)
    except Exception as error:
        raise _refusal("torch.onnx", error) from error
    return expected


def _refusal(who: str, error: Exception) -> ConversionError:
    """One line of what an exporter says, its innermost reason first: the outer ones are about the exporter itself."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    reason = str(error).strip().partition("\n")[0][:300]
    return ConversionError(f"{who} cannot write this model: {type(error).__name__}: {reason}")


def _describe(path: Path, metadata: dict[str, str]) -> int:
    """Write metadata into the file, whose batch must be free; its operators' version."""
    import onnx

    model = onnx.load(path)
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ConversionError(
            "the exporter had to fix the batch; keep the number of samples out of the model's shapes and branches, "
            "for example x.reshape(-1, 64)"
        )
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return max(entry.version for entry in model.opset_import if not entry.domain)


def _run(path: Path, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])
    except Exception as error:
        raise ConversionError(f"onnxruntime refuses the file: {str(error).strip().partition(chr(10))[0]}") from error


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed: {_PACKAGES}")
    except (ConversionError, TaskError, TensorError) as error:
        sys.exit(str(error))
