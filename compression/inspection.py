"""What is in a `.tflite`: operations, tensors, quantization, metadata. It is read, not run; no runtime is loaded."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from compression.errors import ArtifactError
from contract import limits

_IDENTIFIER = b"TFL3"  # at byte 4, as every FlatBuffer of this schema has it
_BITS = {"INT4": 4, "UINT4": 4, "INT2": 2}
_RUNTIME = "min_runtime_version"
_COMPUTING = (
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "TRANSPOSE_CONV",
    "UNIDIRECTIONAL_SEQUENCE_LSTM",
    "SVDF",
)


class OperationCount(msgspec.Struct, frozen=True, kw_only=True):
    """An operation: how often it is there, in which newest version, and whether no runtime has it of itself."""

    name: str
    version: int
    count: int
    custom: bool


class TensorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output.

    Attributes:
        shape: -1 where it may vary.
        scale, zero_point: real value = scale * (integer - zero_point); None where it is not quantized.
    """

    name: str
    dtype: str
    shape: list[int]
    scale: float | None = None
    zero_point: int | None = None


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What a `.tflite` holds.

    Attributes:
        bytes, sha256: of the file.
        quantization: in one word or two: float32, float16 weights, weight-only, dynamic, int8, int16x8, mixed.
        operations: by name.
        weights: bytes of constants by their type, and `parameters`, how many values those are.
        signatures: by key, names of inputs and outputs.
        metadata: name to text, or to the number of bytes where it is none.
        min_runtime: oldest runtime, as the converter wrote it; empty where it did not.
        custom: operations that are not builtin: a runtime without them refuses the file.
    """

    bytes: int
    sha256: str
    description: str
    quantization: str
    operations: list[OperationCount]
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    weights: dict[str, int]
    parameters: int
    subgraphs: int
    signatures: dict[str, dict[str, list[str]]]
    metadata: dict[str, str | int]
    min_runtime: str
    custom: list[str]


def inspect(content: bytes) -> Inspection:
    """Look into a `.tflite`.

    Raises:
        ArtifactError: too large, or not a `.tflite`.
    """
    if len(content) > limits.ARTIFACT_BYTES:
        raise ArtifactError(f"the file has {len(content):,} bytes, {limits.ARTIFACT_BYTES:,} are allowed")
    if content[4:8] != _IDENTIFIER:
        raise ArtifactError("not a .tflite: bytes 4 to 8 are not TFL3")
    from ai_edge_litert import schema_py_generated as schema

    try:
        return _inspect(schema.ModelT.InitFromObj(schema.Model.GetRootAs(content)), content)
    except Exception as error:  # the reader of flatbuffers raises whatever comes of bytes that are none
        raise ArtifactError(f"not a .tflite that can be read: {type(error).__name__}: {error}") from error


def _inspect(model: Any, content: bytes) -> Inspection:
    graph = model.subgraphs[0]
    metadata = {_text(each.name): _value(model.buffers[each.buffer].data) for each in model.metadata or []}
    operations = _operations(model)
    constants = Counter[str]()
    parameters = 0
    for each in model.subgraphs:
        for tensor in each.tensors:
            data = model.buffers[tensor.buffer].data
            if data is not None and len(data):
                dtype = _dtype(tensor)
                constants[dtype] += len(data)
                parameters += len(data) * 8 // _bits(dtype)
    return Inspection(
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        description=_text(model.description),
        quantization=_quantization(model, graph),
        operations=operations,
        inputs=[_tensor(graph.tensors[index]) for index in graph.inputs],
        outputs=[_tensor(graph.tensors[index]) for index in graph.outputs],
        weights=dict(sorted(constants.items())),
        parameters=parameters,
        subgraphs=len(model.subgraphs),
        signatures={
            _text(each.signatureKey): {
                "inputs": [_text(one.name) for one in each.inputs or []],
                "outputs": [_text(one.name) for one in each.outputs or []],
            }
            for each in model.signatureDefs or []
        },
        metadata=metadata,
        min_runtime=str(metadata.get(_RUNTIME, "")),
        custom=sorted(each.name for each in operations if each.custom),
    )


def _operations(model: Any) -> list[OperationCount]:
    found: dict[tuple[str, bool], tuple[int, int]] = {}
    for graph in model.subgraphs:
        for operator in graph.operators or []:
            code = model.operatorCodes[operator.opcodeIndex]
            key = (_operation(code), code.customCode is not None)
            version, count = found.get(key, (1, 0))
            found[key] = (max(version, code.version), count + 1)
    return [
        OperationCount(name=name, version=version, count=count, custom=custom)
        for (name, custom), (version, count) in sorted(found.items())
    ]


def _operation(code: Any) -> str:
    from ai_edge_litert import schema_py_generated as schema

    if code.customCode is not None:
        return _text(code.customCode)
    number = max(code.builtinCode, code.deprecatedBuiltinCode)  # files from before 2020 have the second alone
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    return str(names.get(number, f"operation {number}"))


def _quantization(model: Any, graph: Any) -> str:
    """What computing operations take: types of their activations and weights."""
    kinds, unpacked = set(), set()
    for operator in graph.operators or []:
        name = _operation(model.operatorCodes[operator.opcodeIndex])
        if name in {"DEQUANTIZE", "DENSIFY"} and _constant(model, graph.tensors[operator.inputs[0]]):
            unpacked.add(int(operator.outputs[0]))
            kinds.add("float16 weights" if _dtype(graph.tensors[operator.inputs[0]]) == "FLOAT16" else "weight-only")
        elif name in _COMPUTING:
            values, weights = (graph.tensors[index] for index in operator.inputs[:2])
            if int(operator.inputs[1]) not in unpacked:
                kinds.add(_kind(_dtype(values), _dtype(weights)))
    return next(iter(kinds)) if len(kinds) == 1 else "mixed" if kinds else _kind(_dtype(graph.tensors[graph.inputs[0]]))


def _kind(values: str, weights: str = "FLOAT32") -> str:
    if values == "FLOAT32":
        return "float32" if weights == "FLOAT32" else "dynamic"
    return {"INT16": "int16x8"}.get(values, values.lower())


def _constant(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def _tensor(tensor: Any) -> TensorInfo:
    shape = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    quantization = tensor.quantization
    known = quantization is not None and quantization.scale is not None and len(quantization.scale)
    return TensorInfo(
        name=_text(tensor.name),
        dtype=_dtype(tensor).lower(),
        shape=[] if shape is None else [int(size) for size in shape],
        scale=float(quantization.scale[0]) if known else None,
        zero_point=int(quantization.zeroPoint[0]) if known and quantization.zeroPoint is not None else None,
    )


def _dtype(tensor: Any) -> str:
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.TensorType).items() if not name.startswith("_")}
    return str(names.get(tensor.type, f"type {tensor.type}"))


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    try:
        return 8 * np.dtype(dtype.lower()).itemsize
    except TypeError:  # text, resources
        return 8


def _text(raw: Any) -> str:
    return "" if raw is None else bytes(raw).decode(errors="replace") if not isinstance(raw, str) else raw


def _value(data: Any) -> str | int:
    """Metadata as text where it is some."""
    raw = b"" if data is None else bytes(data).rstrip(b"\0")
    text = raw.decode("ascii", errors="replace")
    return text if len(raw) <= 64 and text.isprintable() else len(raw)


def lines(found: Inspection) -> Iterator[str]:
    """An inspection for people."""
    yield f"{found.bytes:,} bytes, {found.quantization}, {found.parameters:,} parameters, sha256 {found.sha256}"
    for name, tensors in (("input", found.inputs), ("output", found.outputs)):
        for each in tensors:
            scaled = f", real = {each.scale:.6g} * (q - {each.zero_point})" if each.scale is not None else ""
            yield f"{name:10} {each.dtype} {each.shape}{scaled}  {each.name}"
    for operation in found.operations:
        custom = "  (custom: not builtin)" if operation.custom else ""
        yield f"operation  {operation.count:4} {operation.name} v{operation.version}{custom}"
    for dtype, size in found.weights.items():
        yield f"constants  {size:,} bytes of {dtype.lower()}"
    for key, ends in found.signatures.items():
        yield f"signature  {key}: {', '.join(ends['inputs'])} -> {', '.join(ends['outputs'])}"
    for name, value in found.metadata.items():
        yield f"metadata   {name}: {value if isinstance(value, str) else f'{value:,} bytes'}"
