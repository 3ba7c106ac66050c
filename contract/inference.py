"""The inference protocol: Open Inference Protocol v2 as JSON, and its binary tensor data extension.

A request names its tensors in JSON. Their numbers stand in the JSON (`data`, nested or flat, row-major), or follow it
as raw little-endian bytes: then the HTTP header `Inference-Header-Content-Length` says how long the JSON is and each
such tensor says `"parameters": {"binary_data_size": N}`. Answers are built alike. Sources: the Open Inference
Protocol's `inference_rest.md` and Triton's `extension_binary_data.md`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from contract.errors import MalformedError, TensorError

HEADER_LENGTH = "Inference-Header-Content-Length"
_DIMENSIONS = 8
_KINDS = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}  # of a datatype: kinds of JSON numbers that it takes
_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    **{
        f"{name}{8 * size}": np.dtype(f"<{kind}{size}")
        for name, kind in (("UINT", "u"), ("INT", "i"))
        for size in (1, 2, 4, 8)
    },
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class TensorParameters(msgspec.Struct, frozen=True):
    """Of a tensor; others than these are ignored.

    Attributes:
        binary_data_size: bytes of the tensor after the JSON.
        binary_data: asks for an output in that form.
    """

    binary_data_size: int | None = None
    binary_data: bool | None = None


class Tensor(msgspec.Struct, frozen=True):
    """An input tensor as it stands in the JSON."""

    name: str
    shape: list[int]
    datatype: str
    parameters: TensorParameters = TensorParameters()
    data: msgspec.Raw = msgspec.Raw()


class RequestedOutput(msgspec.Struct, frozen=True):
    """An output that the caller wants."""

    name: str
    parameters: TensorParameters = TensorParameters()


class RequestParameters(msgspec.Struct, frozen=True):
    """Of a request; `binary_data_output` asks for all outputs in the binary form."""

    binary_data_output: bool = False


class RequestHeader(msgspec.Struct, frozen=True):
    """The JSON of a request."""

    inputs: list[Tensor]
    id: str = ""
    parameters: RequestParameters = RequestParameters()
    outputs: list[RequestedOutput] = []


class TensorMetadata(msgspec.Struct, frozen=True):
    """A tensor of a model; -1 in the shape is any number."""

    name: str
    datatype: str
    shape: list[int]


class ServerMetadata(msgspec.Struct, frozen=True):
    """The answer of `GET /v2`."""

    name: str
    version: str
    extensions: list[str]


class ModelMetadata(msgspec.Struct, frozen=True):
    """The answer of `GET /v2/models/NAME`."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, str] = {}


@dataclass(frozen=True)
class InferenceRequest:
    """A request, decoded.

    Attributes:
        id: echoed in the answer.
        inputs: arrays by name.
        outputs: wanted, in order, each with whether it is wanted as bytes; empty is what the server gives by itself.
        binary: whether outputs are wanted as bytes where nothing else is said.
    """

    id: str
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, bool]
    binary: bool


def decode_request(body: bytes, header_length: int | None = None) -> InferenceRequest:
    """Read a request. The caller has checked the size of the body.

    Args:
        body: JSON, or JSON and the bytes of tensors.
        header_length: bytes of JSON at its start; None where all of it is JSON.

    Raises:
        MalformedError: not JSON, not a request, or bytes that no tensor claims.
        TensorError: a datatype, a shape or numbers that do not fit each other.
    """
    length = len(body) if header_length is None else header_length
    if not 0 < length <= len(body):
        raise MalformedError(f"{HEADER_LENGTH} is {length}, the body has {len(body)} bytes")
    try:
        header = msgspec.json.decode(memoryview(body)[:length], type=RequestHeader)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise MalformedError(f"not an inference request: {error}") from error
    inputs: dict[str, np.ndarray] = {}
    rest = memoryview(body)[length:]
    for tensor in header.inputs:
        if tensor.name in inputs:
            raise TensorError(f"input {tensor.name!r} comes twice")
        inputs[tensor.name], rest = _array(tensor, rest)
    if len(rest):
        raise MalformedError(f"{len(rest)} bytes after the last tensor; check binary_data_size and {HEADER_LENGTH}")
    binary = header.parameters.binary_data_output
    wanted = {
        output.name: binary if output.parameters.binary_data is None else output.parameters.binary_data
        for output in header.outputs
    }
    return InferenceRequest(header.id, inputs, wanted, binary)


def _array(tensor: Tensor, rest: memoryview) -> tuple[np.ndarray, memoryview]:
    name = f"input {tensor.name[:64]!r}"
    dtype = _DTYPES.get(tensor.datatype)
    if dtype is None:
        raise TensorError(f"{name}: datatype {tensor.datatype[:32]!r} is none of {', '.join(_DTYPES)}")
    if not 1 <= len(tensor.shape) <= _DIMENSIONS or min(tensor.shape) < 1:
        raise TensorError(f"{name}: shape {tensor.shape[:_DIMENSIONS]} needs 1 to {_DIMENSIONS} positive sizes")
    size = tensor.parameters.binary_data_size
    if size is None:
        values = _from_json(name, tensor.data, dtype)
        if values.size != math.prod(tensor.shape):
            raise TensorError(f"{name}: shape {tensor.shape} has {math.prod(tensor.shape)} entries, data {values.size}")
        return values.reshape(tensor.shape), rest
    if bytes(tensor.data):
        raise TensorError(f"{name}: has both data and binary_data_size")
    needed = math.prod(tensor.shape) * dtype.itemsize
    if not size == needed <= len(rest):
        raise TensorError(
            f"{name}: shape {tensor.shape} of {tensor.datatype} takes {needed} bytes, "
            f"binary_data_size is {size}, and {len(rest)} bytes are left"
        )
    return np.frombuffer(rest[:size], dtype).reshape(tensor.shape), rest[size:]


def _from_json(name: str, data: msgspec.Raw, dtype: np.dtype) -> np.ndarray:
    try:
        decoded = msgspec.json.decode(data)
        values = np.asarray(decoded)
        if dtype.kind == "u" and values.dtype.kind == "f" and (exact := np.asarray(decoded, object)).size:
            # numpy makes floats of a list with numbers on both sides of 2^63
            values = exact.astype(dtype) if all(type(number) is int for number in exact.flat) else values
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
        raise TensorError(f"{name}: data is no array of numbers: {error}") from error
    if values.dtype.kind not in _KINDS[dtype.kind] and values.size:
        raise TensorError(f"{name}: data must be numbers that {_NAMES[dtype]} holds, has {values.dtype}")
    if dtype.kind in "iu" and values.size:
        limit = np.iinfo(dtype)
        if int(values.min()) < limit.min or int(values.max()) > limit.max:
            raise TensorError(f"{name}: a number is outside {_NAMES[dtype]}, {limit.min} to {limit.max}")
    with np.errstate(over="ignore"):  # becomes infinite, which the transform refuses by name
        return values.astype(dtype)


def encode_response(
    *,
    model: str,
    version: str,
    request_id: str,
    outputs: Mapping[str, np.ndarray | Sequence[str]],
    binary: Mapping[str, bool],
    parameters: Mapping[str, str],
) -> tuple[bytes, int | None]:
    """Build an answer.

    Args:
        model, version: what served.
        request_id: of the request; empty where it had none.
        outputs: arrays, or strings (datatype BYTES), by name.
        binary: whether an output goes out as bytes; those that are not named do not.
        parameters: of the answer.

    Returns:
        The body, and the length of its JSON part where bytes follow (for `Inference-Header-Content-Length`).
    """
    tensors, tail = [], []
    for name, values in outputs.items():
        array = np.asarray(values)
        strings = array.dtype.kind not in "fiub"
        tensor: dict[str, object] = {
            "name": name,
            "datatype": "BYTES" if strings else _NAMES[array.dtype],
            "shape": list(array.shape),
        }
        if binary.get(name):
            content = _string_bytes(array) if strings else array.tobytes()
            tensor["parameters"] = {"binary_data_size": len(content)}
            tail.append(content)
        else:
            tensor["data"] = array.ravel().tolist()
        tensors.append(tensor)
    header: dict[str, object] = {"model_name": model, "model_version": version}
    if request_id:
        header["id"] = request_id
    encoded = msgspec.json.encode({**header, "parameters": dict(parameters), "outputs": tensors})
    return b"".join([encoded, *tail]), len(encoded) if tail else None


def _string_bytes(array: np.ndarray) -> bytes:
    """Each string as its length in four bytes, little-endian, and UTF-8."""
    encoded = [str(text).encode() for text in array.ravel()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)


def encode_error(message: str) -> bytes:
    """The protocol's error object."""
    return msgspec.json.encode({"error": message})
