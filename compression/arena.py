"""How many bytes of activations a `.tflite` needs at once, by the plan of the runtime itself.

TensorFlow Lite's planner lays tensors out greedily, the largest first, each at the lowest place that is free during its
life (Pisarchyk & Lee 2020, arXiv:2001.03288, section 5: Greedy by Size). A delegate has buffers of its own beside it.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from compression.errors import ArtifactError

_ALIGNED = 64  # bytes, as the runtime aligns tensors


class Life(NamedTuple):
    """A tensor: bytes, and the first and last operation during which it must be there."""

    size: int
    first: int
    last: int


def planned_bytes(content: bytes) -> int:
    """Bytes of the arena for one inference.

    Raises:
        ArtifactError: not a `.tflite`, or a shape that is not fixed.
    """
    return plan(lives(content))


def plan(tensors: list[Life]) -> int:
    """Height of the greedy layout, in bytes."""
    placed: list[tuple[int, int, Life]] = []  # offset, end, tensor
    for tensor in sorted(tensors, key=lambda each: (-each.size, each.first)):
        size = -(-tensor.size // _ALIGNED) * _ALIGNED
        offset = 0
        for start, end, other in sorted(placed):
            together = other.first <= tensor.last and tensor.first <= other.last
            if together and start < offset + size and offset < end:
                offset = end
        placed.append((offset, offset + size, tensor))
    return max((end for _, end, _ in placed), default=0)


def lives(content: bytes) -> list[Life]:
    """Every tensor of the main graph that is neither a constant nor unused.

    Raises:
        ArtifactError: see `planned_bytes`.
    """
    from ai_edge_litert import schema_py_generated as schema

    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
        graph = model.subgraphs[0]
        first, last = _uses(graph)
        return [_life(model, graph, index, first[index], last[index]) for index in sorted(first)]
    except ArtifactError:
        raise
    except Exception as error:  # the reader of flatbuffers raises whatever comes of bytes that are none
        raise ArtifactError(f"not a .tflite that can be read: {type(error).__name__}: {error}") from error


def _uses(graph: Any) -> tuple[dict[int, int], dict[int, int]]:
    """The first and the last operation that needs each tensor which an operation or the caller writes."""
    end = len(graph.operators)
    first = {int(index): 0 for index in graph.inputs}
    last = {int(index): 0 for index in graph.inputs}
    for number, operator in enumerate(graph.operators):
        for index in map(int, operator.outputs):
            first.setdefault(index, number)
            last[index] = number
        for index in map(int, operator.inputs):
            if index in first:
                last[index] = number
    kept = (*map(int, graph.inputs), *map(int, graph.outputs))  # the runtime never lays anything over either
    last.update({index: end for index in kept if index in first})
    return first, last


def _life(model: Any, graph: Any, index: int, first: int, last: int) -> Life:
    from ai_edge_litert import schema_py_generated as schema

    tensor = graph.tensors[index]
    shape = [] if tensor.shape is None else [int(size) for size in tensor.shape]
    if any(size < 0 for size in shape):
        raise ArtifactError(f"tensor {tensor.name.decode()!r} has no fixed shape: {shape}")
    names = {value: name for name, value in vars(schema.TensorType).items() if not name.startswith("_")}
    bits = {"INT4": 4, "INT2": 2, "BOOL": 8}.get(names[tensor.type])
    if bits is None:
        bits = 8 * np.dtype(names[tensor.type].lower()).itemsize
    return Life(-(-math.prod(shape) * bits // 8), first, last)
