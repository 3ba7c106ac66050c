"""The torch lane: a torch task's version as a float or int8 `.tflite`, by litert-torch in an environment of its own.

litert-torch wants other versions of common packages than the rest, so a child of the interpreter that the variable
FIELDFARE_TORCH_PYTHON names (else of this one) runs `compression.lanes.torch_child FOLDER`. Weights and samples travel
as safetensors. What works on Keras models alone is refused by name; what works on a float artifact works here too.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from cloud.learning.task import Task
from compression import checks
from compression.errors import ConversionError, UnsupportedLayerError
from compression.stage import Workbench
from contract import tensors
from contract.tensors import Arrays

PYTHON = "FIELDFARE_TORCH_PYTHON"
LONGEST_S = 1800  # of one conversion
SAMPLES = 200  # that show ranges of activations
REQUEST, WEIGHTS, SHOWN, MODEL = "request.json", "weights.safetensors", "x.safetensors", "m.tflite"
INSTALL = f"pip install 'fieldfare[compression-torch]' in an environment of its own, and name its Python in {PYTHON}"


class Request(msgspec.Struct, frozen=True):
    """What the child is to do."""

    task: str
    form: Literal["float", "int8"]


@dataclass(frozen=True)
class TorchModel:
    """A torch task's module, by what it can be built from again in another process."""

    task: Task
    weights: Arrays


def convert(model: TorchModel, form: Literal["float", "int8"], bench: Workbench, *, samples: int = SAMPLES) -> bytes:
    """A `.tflite` with batch size 1: float, or int8 weights, activations, input and output by PT2E.

    Raises:
        RecipeError: representative samples that make no sense.
        ConversionError: litert-torch is not installed, or refuses the module.
    """
    shown = checks.representative(bench.train.spread(samples), bench.train.x.shape[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / REQUEST).write_bytes(msgspec.json.encode(Request(model.task.ref, form)))
        (folder / WEIGHTS).write_bytes(tensors.dump(model.weights))
        (folder / SHOWN).write_bytes(tensors.dump({"x": shown}))
        command = [os.environ.get(PYTHON) or sys.executable, "-m", "compression.lanes.torch_child", str(folder)]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, env=environment, timeout=LONGEST_S
            )
        except subprocess.TimeoutExpired as error:
            raise ConversionError(
                f"torch, {form}: the conversion took longer than {LONGEST_S} s and was stopped"
            ) from error
        except OSError as error:
            raise ConversionError(f"{PYTHON}: {command[0]}: {error.strerror}; {INSTALL}") from error
        if done.returncode or not (folder / MODEL).exists():
            said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise ConversionError(f"torch, {form}: {said[-1][:500]}")
        return (folder / MODEL).read_bytes()


def refuse(task: Task, what: str) -> None:
    """Refuse a torch task.

    Raises:
        UnsupportedLayerError: it is one; the message says what to use instead.
    """
    if task.framework == "torch":
        raise UnsupportedLayerError(
            f"{what} works on Keras models, and {task.name} is a torch task; use float or int8, and after float "
            "mixed or weight-only; or write the task in Keras"
        )
