"""Weights on the wire and on disk: an ordered list of named arrays as safetensors.

safetensors sorts its entries, so the order is kept in the file's own metadata under `order`.
"""

import json
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from contract import limits
from contract.errors import TensorError, TooLargeError

Arrays = dict[str, np.ndarray]

_DTYPES = {"F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}


def dump(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """Encode arrays; the same arrays in the same order give the same bytes.

    Args:
        arrays: name to array, any shape.
        metadata: text kept beside the order.
    """
    entries = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    order = json.dumps(list(entries), separators=(",", ":"))
    return safetensors.save(entries, metadata={**(metadata or {}), "order": order})


def load(data: bytes, *, limit: int = limits.ARTIFACT_BYTES) -> Arrays:
    """Decode arrays in the order in which they were dumped.

    Raises:
        TooLargeError: longer than `limit` bytes.
        TensorError: not safetensors, too many tensors, or a dtype outside numpy's.
    """
    if len(data) > limit:
        raise TooLargeError("a tensor file", size=len(data), limit=limit)
    header = _header(data)
    try:
        arrays = safetensors.load(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise TensorError(f"not a safetensors file: {error}") from error
    try:
        order = json.loads(header.get("__metadata__", {}).get("order", "null"))
    except (ValueError, RecursionError, TypeError) as error:
        raise TensorError("the tensor order is not a JSON list") from error
    if order is None:
        return arrays
    named = isinstance(order, list) and all(isinstance(name, str) for name in order)
    if not named or sorted(order) != sorted(arrays):
        raise TensorError("the tensor order does not name every tensor once")
    return {name: arrays[name] for name in order}


def _header(data: bytes) -> dict[str, dict[str, str]]:
    if len(data) < 8:
        raise TensorError("a tensor file needs at least 8 bytes")
    size = int.from_bytes(data[:8], "little")
    if size > limits.TENSORS_HEADER_BYTES or size > len(data) - 8:
        raise TensorError(f"a tensor header of {size} bytes does not fit")
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError) as error:
        raise TensorError("the tensor header is not JSON") from error
    if not isinstance(header, dict) or len(header) > limits.TENSORS_COUNT + 1:
        raise TensorError(f"a tensor header must be an object of at most {limits.TENSORS_COUNT} tensors")
    for name, entry in header.items():
        if not isinstance(entry, dict):
            raise TensorError(f"tensor {name[:80]!r} has no description")
        dtype = str(entry.get("dtype"))
        if name != "__metadata__" and dtype not in _DTYPES:
            raise TensorError(f"tensor {name[:80]!r} has an unsupported dtype {dtype[:20]!r}")
    return header


def check_like(arrays: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> None:
    """Check that `arrays` could replace `reference`: same names in the same order, shapes, dtypes, all finite.

    Raises:
        TensorError: naming the first array that differs, and how.
    """
    if list(arrays) != list(reference):
        raise TensorError(f"expected tensors {list(reference)[:8]}, got {list(arrays)[:8]}")
    for name, want in reference.items():
        got = arrays[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            raise TensorError(f"{name}: expected {want.dtype}{want.shape}, got {got.dtype}{got.shape}")
        if got.dtype.kind == "f" and not np.isfinite(got).all():
            raise TensorError(f"{name}: {int((~np.isfinite(got)).sum())} values are not finite")
