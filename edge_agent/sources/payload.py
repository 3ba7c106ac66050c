"""Samples as bytes: JSON, or raw numbers."""

from typing import Annotated, Literal

import msgspec
import numpy as np

from edge_agent.errors import SampleError

PAYLOAD_BYTES = 16 * 1024 * 1024


class PayloadOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a source's bytes are read."""

    format: Annotated[
        Literal["json", "raw"],
        msgspec.Meta(description='json: an array, or {"x": array, "y": label or labels}; raw: little-endian numbers'),
    ] = "json"
    dtype: Annotated[
        Literal["float32", "float64", "uint8", "int8", "int16", "uint16", "int32"],
        msgspec.Meta(description="of raw numbers"),
    ] = "float32"


class _Labelled(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    x: list[object]
    y: int | list[int] | None = None


def read(payload: bytes, options: PayloadOptions) -> tuple[np.ndarray, np.ndarray | None]:
    """Numbers of a payload, and labels where it has some.

    Raises:
        SampleError: other bytes than the options say, or too many.
    """
    if len(payload) > PAYLOAD_BYTES:
        raise SampleError(f"{len(payload)} bytes, the limit is {PAYLOAD_BYTES}")
    if options.format == "raw":
        dtype = np.dtype(options.dtype).newbyteorder("<")
        if not payload or len(payload) % dtype.itemsize:
            raise SampleError(f"{len(payload)} bytes are no {options.dtype} numbers")
        return np.frombuffer(payload, dtype), None
    try:
        decoded = msgspec.json.decode(payload, type=list[object] | _Labelled)
        y = decoded.y if isinstance(decoded, _Labelled) else None
        x = np.asarray(decoded.x if isinstance(decoded, _Labelled) else decoded)
        labels = None if y is None else np.atleast_1d(np.asarray(y, np.int64))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as error:
        raise SampleError(f"no JSON samples: {str(error)[:200]}") from error
    if x.dtype.kind not in "fiub" or not x.size:
        raise SampleError("no JSON samples: an array of numbers is expected")
    return x, labels


def fit(x: np.ndarray, input_shape: tuple[int, ...], y: np.ndarray | None = None) -> np.ndarray:
    """Numbers as samples of a model.

    Args:
        x: one sample, several, or their numbers in that order.
        input_shape: of one raw sample.
        y: labels, where there are any.

    Returns:
        Shape (n, *input_shape).

    Raises:
        SampleError: the numbers do not make whole samples, or not as many as there are labels.
    """
    size = int(np.prod(input_shape))
    if x.shape != input_shape and x.shape[1:] != input_shape and (not x.size or x.size % size):
        raise SampleError(f"{x.size} numbers make no samples of shape {input_shape}")
    samples = x.reshape(-1, *input_shape)
    if y is not None and y.shape != samples.shape[:1]:
        raise SampleError(f"{len(samples)} samples have labels of shape {y.shape}")
    return samples
