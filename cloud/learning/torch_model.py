"""A torch task's module and its weights as an ordered list of named arrays.

Names and order are those of the state dict. Buffers of integers (BatchNorm's count of batches) stay in the module: no
inference needs them. The module takes samples as the transform gives them, (batch, *input), and gives logits.
"""

from typing import Any

import numpy as np

from cloud.errors import TaskError
from cloud.learning.task import Task
from contract.tensors import Arrays, check_like


def build(task: Task, *, seed: int) -> Any:
    """A fresh module in evaluation mode; the same seed gives the same weights.

    Raises:
        TaskError: not a module, or one that does not give a logit for each label.
    """
    import torch

    torch.manual_seed(seed)
    module = task.build_model(torch)
    if not isinstance(module, torch.nn.Module):
        raise TaskError(f"{task.name}: build_model must give a torch.nn.Module, it gave {type(module).__name__}")
    module.eval()
    shape = (1, *task.input_shape)
    try:
        found = tuple(logits(module, np.zeros(shape, np.float32)).shape)
    except (RuntimeError, ValueError) as error:
        raise TaskError(f"{task.name}: the module does not take samples of shape {shape}: {error}") from error
    if found != (1, len(task.labels)):
        raise TaskError(f"{task.name}: the module gives {found}, expected (1, {len(task.labels)}) logits")
    return module


def get(module: Any) -> Arrays:
    """Floating-point entries of the state dict, float32."""
    state = module.state_dict()
    return {
        name: value.detach().cpu().numpy().astype(np.float32)
        for name, value in state.items()
        if value.is_floating_point()
    }


def put(module: Any, arrays: Arrays) -> None:
    """Give a module these weights.

    Raises:
        TensorError: other names, another order, shapes or dtypes, or values that are not finite.
    """
    import torch

    check_like(arrays, get(module))
    module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, strict=False)


def logits(module: Any, x: np.ndarray, batch: int = 512) -> np.ndarray:
    """Logits of model input, float32 (n, classes)."""
    import torch

    with torch.no_grad():
        parts = [module(torch.from_numpy(x[at : at + batch])).numpy() for at in range(0, len(x), batch)]
    return np.concatenate(parts)
