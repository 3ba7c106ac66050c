"""Gradients made of TFLite builtin operations alone.

TensorFlow's own gradients of ReLU, convolutions, pooling and slices are kernels that LiteRT does not have. Under
`overrides()` the forward operations get these instead; they give the same numbers (tests compare them with
TensorFlow's). All shapes must be static, the batch included. Comparisons are written as multiplications by a huge
number where XNNPACK runs those faster than EQUAL and CAST.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from compression.errors import UnsupportedLayerError

HUGE = 1e30
_SMALL = 48  # entries of a patch
_NATIVE_CONVOLUTION = tf.nn.convolution
Tensor = Any  # tensorflow has no types here

_OVERRIDES = {
    "Relu": "FieldfareRelu",
    "Relu6": "FieldfareRelu6",
    "AddV2": "FieldfareAdd",
    "BiasAdd": "FieldfareAdd",
    "MatMul": "FieldfareMatMul",
    "Conv2D": "FieldfareConv2D",
    "DepthwiseConv2dNative": "FieldfareDepthwiseConv2D",
    "MaxPool": "FieldfareMaxPool",
    "AvgPool": "FieldfareAvgPool",
    "StridedSlice": "FieldfareStridedSlice",
}


@contextlib.contextmanager
def overrides() -> Iterator[None]:
    """While tracing a tf.function: operations made inside get the gradients of this module."""
    with tf.compat.v1.get_default_graph().gradient_override_map(_OVERRIDES), products():
        yield


@contextlib.contextmanager
def products() -> Iterator[None]:
    """While tracing: Keras' convolutions are products of matrices."""
    tf.nn.convolution = convolution
    try:
        yield
    finally:
        tf.nn.convolution = _NATIVE_CONVOLUTION


class _Window(NamedTuple):
    """One axis of a sliding window: output size, padding before and after, stride, dilation."""

    out: int
    before: int
    after: int
    stride: int
    dilation: int


def _window(op: Any, axis: int, size: int, kernel: int) -> _Window:
    stride, dilation = op.get_attr("strides")[axis], op.get_attr("dilations")[axis]
    if op.get_attr("padding") not in {b"VALID", b"SAME"}:
        raise UnsupportedLayerError(f"{op.name}: padding {op.get_attr('padding')!r} cannot be trained on a device")
    return _slide(size, kernel, stride, dilation, op.get_attr("padding").decode())


def _slide(size: int, kernel: int, stride: int, dilation: int, padding: str) -> _Window:
    reach = (kernel - 1) * dilation + 1
    if padding == "VALID":
        return _Window((size - reach) // stride + 1, 0, 0, stride, dilation)
    out = -(-size // stride)
    total = max((out - 1) * stride + reach - size, 0)
    return _Window(out, total // 2, total - total // 2, stride, dilation)


def _pad(x: Tensor, rows: _Window, columns: _Window) -> Tensor:
    """With zeros, row by row: XNNPACK is slow where the last dimension is short."""
    if not any((rows.before, rows.after, columns.before, columns.after)):
        return x
    batch, height, width, channels = x.shape
    flat = tf.reshape(x, [batch, height, width * channels])
    flat = tf.pad(flat, [[0, 0], [rows.before, rows.after], [columns.before * channels, columns.after * channels]])
    return tf.reshape(flat, [batch, height + rows.before + rows.after, -1, channels])


@tf.RegisterGradient("FieldfareRelu")
def _relu(op: Any, dy: Tensor) -> Tensor:
    return dy * tf.minimum(op.outputs[0] * HUGE, 1.0)


@tf.RegisterGradient("FieldfareRelu6")
def _relu6(op: Any, dy: Tensor) -> Tensor:
    y = op.outputs[0]
    return dy * tf.minimum(y * HUGE, 1.0) * tf.minimum((6.0 - y) * HUGE, 1.0)


@tf.RegisterGradient("FieldfareAdd")
def _add(op: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    return _sum_to(dy, op.inputs[0]), _sum_to(dy, op.inputs[1])


def _sum_to(dy: Tensor, x: Tensor) -> Tensor:
    """Undo broadcasting."""
    if x.shape == dy.shape:
        return dy
    added = dy.shape.rank - x.shape.rank
    axes = [*range(added), *(added + axis for axis, size in enumerate(x.shape) if size == 1)]
    return tf.reshape(tf.reduce_sum(dy, axes), x.shape)


@tf.RegisterGradient("FieldfareMatMul")
def _matmul(op: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    a, b = op.inputs
    if op.get_attr("transpose_a") or op.get_attr("transpose_b"):
        raise UnsupportedLayerError(f"{op.name}: a product with a transposed factor cannot be trained on a device")
    return product(dy, b, transpose_b=True), product(a, dy, transpose_a=True)


def product(a: Tensor, b: Tensor, *, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
    """The product of two matrices.

    With a third dimension it becomes BATCH_MATMUL, which XNNPACK runs also where neither is constant;
    FULLY_CONNECTED and CONV_2D with weights that are inputs it leaves to slower kernels.
    """
    a, b = (tf.reshape(factor, [1, *factor.shape]) for factor in (a, b))
    whole = tf.matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b)
    return tf.reshape(whole, whole.shape[1:])


@tf.RegisterGradient("FieldfareConv2D")
def _conv2d(op: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    x, kernel = op.inputs
    slides = _window(op, 1, x.shape[1], kernel.shape[0]), _window(op, 2, x.shape[2], kernel.shape[1])
    return _conv2d_gradients(x, kernel, dy, slides)


def convolution(
    x: Tensor,
    kernel: Tensor,
    strides: Any = 1,
    padding: str = "VALID",
    *,
    data_format: str | None = None,
    dilations: Any = 1,
) -> Tensor:
    """`tf.nn.convolution` of one or two dimensions as a product of matrices."""
    rank = x.shape.rank - 2
    strides, dilations = ([n] * rank if isinstance(n, int) else list(n) for n in (strides, dilations))
    if rank > 2 or data_format not in {None, "NWC", "NHWC"} or x.shape[-1] != kernel.shape[-2]:
        return _NATIVE_CONVOLUTION(x, kernel, strides, padding, data_format=data_format, dilations=dilations)
    if rank == 1:
        x, kernel = tf.expand_dims(x, 1), tf.expand_dims(kernel, 0)
        return tf.squeeze(convolution(x, kernel, [1, *strides], padding, dilations=[1, *dilations]), 1)
    rows, columns = (
        _slide(x.shape[axis + 1], kernel.shape[axis], strides[axis], dilations[axis], padding) for axis in (0, 1)
    )

    @tf.custom_gradient
    def convolve(x: Tensor, kernel: Tensor) -> tuple[Tensor, Any]:
        y = _correlate(_pad(x, rows, columns), kernel, rows, columns)
        return y, lambda dy: _conv2d_gradients(x, kernel, dy, (rows, columns))

    return convolve(x, kernel)


def _conv2d_gradients(x: Tensor, kernel: Tensor, dy: Tensor, slides: tuple[_Window, _Window]) -> tuple[Tensor, Tensor]:
    rows, columns = slides
    seen, flat = _seen(_pad(x, rows, columns), kernel, rows, columns), tf.reshape(dy, [-1, dy.shape[-1]])
    kernel_gradient = tf.concat([product(part, flat, transpose_a=True) for part in seen], 0)
    flipped = tf.transpose(tf.reverse(kernel, [0, 1]), [0, 1, 3, 2])
    back = _Window(x.shape[1], 0, 0, 1, rows.dilation), _Window(x.shape[2], 0, 0, 1, columns.dilation)
    dx = _correlate(_framed(dy, x, kernel, rows, columns), flipped, *back)
    return dx, tf.reshape(kernel_gradient, kernel.shape)


def _correlate(padded: Tensor, kernel: Tensor, rows: _Window, columns: _Window) -> Tensor:
    """The kernel slid over `padded`: (batch, rows, columns, channels out)."""
    entries, start = tf.reshape(kernel, [-1, kernel.shape[-1]]), 0
    parts = []
    for part in _seen(padded, kernel, rows, columns):
        parts.append(product(part, entries[start : start + part.shape[1]]))
        start += part.shape[1]
    return tf.reshape(functools.reduce(tf.add, parts), [padded.shape[0], rows.out, columns.out, kernel.shape[-1]])


def _seen(padded: Tensor, kernel: Tensor, rows: _Window, columns: _Window) -> list[Tensor]:
    """What the kernel's entries meet, each (batch * rows * columns, channels): one by one, or side by side if small."""
    height, width, channels = kernel.shape[:3]
    size = height * width * channels
    if size <= _SMALL and height * width > 1:  # a convolution with a constant kernel copies faster than slices do
        copies = np.eye(size, dtype=np.float32).reshape(height, width, channels, size)
        strides, dilations = [rows.stride, columns.stride], [rows.dilation, columns.dilation]
        return [tf.reshape(tf.nn.conv2d(padded, copies, strides, "VALID", dilations=dilations), [-1, size])]
    taps = (_tap(padded, i, j, rows, columns) for i in range(height) for j in range(width))
    return [tf.reshape(tap, [-1, channels]) for tap in taps]


def _tap(padded: Tensor, i: int, j: int, rows: _Window, columns: _Window) -> Tensor:
    """What the kernel's entry (i, j) meets: (batch, rows, columns, channels)."""
    top, left = i * rows.dilation, j * columns.dilation
    bottom, right = top + (rows.out - 1) * rows.stride + 1, left + (columns.out - 1) * columns.stride + 1
    return padded[:, top : bottom : rows.stride, left : right : columns.stride, :]


def _framed(dy: Tensor, x: Tensor, kernel: Tensor, rows: _Window, columns: _Window) -> Tensor:
    """`dy` spread by the strides, and padded so that the flipped kernel slides over it to the shape of `x`."""
    spread = _spread(dy, rows, columns)
    reach = (kernel.shape[0] - 1) * rows.dilation, (kernel.shape[1] - 1) * columns.dilation
    top, left = reach[0] - rows.before, reach[1] - columns.before
    after_rows = x.shape[1] - spread.shape[1] + rows.before
    after_columns = x.shape[2] - spread.shape[2] + columns.before
    return _pad(spread, _Window(0, top, after_rows, 1, 1), _Window(0, left, after_columns, 1, 1))


@tf.RegisterGradient("FieldfareDepthwiseConv2D")
def _depthwise(op: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    x, kernel = op.inputs
    height, width, channels, multiplier = kernel.shape
    if multiplier != 1:
        raise UnsupportedLayerError(
            f"{op.name}: a depth multiplier of {multiplier} cannot be trained on a device; use 1"
        )
    rows, columns = _window(op, 1, x.shape[1], height), _window(op, 2, x.shape[2], width)
    padded = _pad(x, rows, columns)
    sums = [
        tf.reduce_sum(_tap(padded, i, j, rows, columns) * dy, [0, 1, 2]) for i in range(height) for j in range(width)
    ]
    kernel_gradient = tf.reshape(tf.stack(sums), [height, width, channels, 1])
    framed, flipped = _framed(dy, x, kernel, rows, columns), tf.reverse(kernel, [0, 1])
    dilations = [rows.dilation, columns.dilation]
    return tf.nn.depthwise_conv2d(framed, flipped, [1, 1, 1, 1], "VALID", dilations=dilations), kernel_gradient


def _spread(dy: Tensor, rows: _Window, columns: _Window) -> Tensor:
    """Put stride - 1 zeros between the entries of both axes; three dimensions at most, as TFLite's PAD needs."""
    if rows.stride == columns.stride == 1:
        return dy
    batch, out_rows, out_columns, channels = dy.shape
    wide = tf.reshape(dy, [batch * out_rows * out_columns, 1, channels])
    wide = tf.pad(wide, [[0, 0], [0, columns.stride - 1], [0, 0]])
    tall = tf.reshape(wide, [batch * out_rows, 1, out_columns * columns.stride * channels])
    tall = tf.pad(tall, [[0, 0], [0, rows.stride - 1], [0, 0]])
    whole = tf.reshape(tall, [batch, out_rows * rows.stride, out_columns * columns.stride, channels])
    return whole[:, : (out_rows - 1) * rows.stride + 1, : (out_columns - 1) * columns.stride + 1, :]


def _pooling(op: Any) -> tuple[int, int]:
    size, strides = op.get_attr("ksize"), op.get_attr("strides")
    if size != strides:
        raise UnsupportedLayerError(
            f"{op.name}: pooling windows {size[1:3]} that overlap (strides {strides[1:3]}) "
            "cannot be trained on a device; use strides equal to the pool size"
        )
    return size[1], size[2]


def _repeat(small: Tensor, height: int, width: int) -> Tensor:
    """Each entry `height` x `width` times, by putting copies beside each other."""
    batch, rows, columns, channels = small.shape
    wide = tf.reshape(tf.concat([small] * width, 3), [batch * rows, columns * width * channels])
    return tf.reshape(tf.concat([wide] * height, 1), [batch, rows * height, columns * width, channels])


def _fit(x: Tensor, rows: int, columns: int, fill: float, *, top: int = 0, left: int = 0) -> Tensor:
    """Pad the beginning of both image axes by `top` and `left`, then cut or pad their end."""
    if x.shape[1] > rows or x.shape[2] > columns:  # a slice of everything would be a copy on the device
        x = x[:, : min(rows, x.shape[1]), : min(columns, x.shape[2]), :]
    pads = [[0, 0], [top, rows - top - x.shape[1]], [left, columns - left - x.shape[2]], [0, 0]]
    return tf.pad(x, pads, constant_values=fill) if np.any(pads) else x


@tf.RegisterGradient("FieldfareMaxPool")
def _max_pool(op: Any, dy: Tensor) -> Tensor:
    """Equal largest entries share the gradient; TensorFlow gives it to the first. After ReLU both are the same."""
    x, y = op.inputs[0], op.outputs[0]
    height, width = _pooling(op)
    rows, columns = y.shape[1] * height, y.shape[2] * width
    top, left = max(rows - x.shape[1], 0) // 2, max(columns - x.shape[2], 0) // 2  # of SAME padding; VALID has none
    covered = _fit(x, rows, columns, -HUGE, top=top, left=left)
    largest = tf.nn.relu(1.0 - (_repeat(y, height, width) - covered) * HUGE)
    count = tf.nn.avg_pool2d(largest, [height, width], [height, width], "VALID") * float(height * width)
    dx = largest * _repeat(dy / count, height, width)
    return _fit(dx[:, top:, left:, :] if top or left else dx, x.shape[1], x.shape[2], 0.0)


@tf.RegisterGradient("FieldfareAvgPool")
def _avg_pool(op: Any, dy: Tensor) -> Tensor:
    x = op.inputs[0]
    height, width = _pooling(op)
    if dy.shape[1] * height > x.shape[1] or dy.shape[2] * width > x.shape[2]:
        raise UnsupportedLayerError(
            f"{op.name}: average pooling over padding cannot be trained on a device; use padding='valid'"
        )
    return _fit(_repeat(dy / float(height * width), height, width), x.shape[1], x.shape[2], 0.0)


@tf.RegisterGradient("FieldfareStridedSlice")
def _strided_slice(op: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
    x = op.inputs[0]
    begin, end, step = (tf.get_static_value(tensor) for tensor in op.inputs[1:4])
    known = begin is not None and end is not None and step is not None and (np.asarray(step) == 1).all()
    if not known or op.get_attr("new_axis_mask") or op.get_attr("ellipsis_mask"):
        raise UnsupportedLayerError(f"{op.name}: only slices with fixed bounds and step 1 can be trained on a device")
    begin_mask, end_mask, shrink = (op.get_attr(f"{name}_mask") for name in ("begin", "end", "shrink_axis"))
    pads, shape = [], []
    for axis, size in enumerate(x.shape):
        low, high = 0, size
        if axis < len(begin):
            low = 0 if begin_mask >> axis & 1 else int(begin[axis]) % size
            high = size if end_mask >> axis & 1 else _bound(int(end[axis]), size)
            high = low + 1 if shrink >> axis & 1 else high
        pads.append([low, size - high])
        shape.append(high - low)
    return tf.pad(tf.reshape(dy, shape), pads), None, None, None


def _bound(end: int, size: int) -> int:
    return end + size if end < 0 else min(end, size)
