"""Gradients made of TFLite builtin operations alone.

TensorFlow's own gradients of ReLU, convolutions, pooling and slices are kernels that LiteRT does not have. Under
`overrides()` the forward operations get these instead; they give the same numbers (tests compare them with
TensorFlow's). All shapes must be static, the batch included. Comparisons are written as multiplications by a huge
number where XNNPACK runs those faster than EQUAL and CAST.
"""

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from compression.errors import UnsupportedLayerError

HUGE = 1e30
Tensor = Any  # tensorflow has no types here

_OVERRIDES = {
    "Relu": "FieldfareRelu",
    "Relu6": "FieldfareRelu6",
    "AddV2": "FieldfareAdd",
    "BiasAdd": "FieldfareAdd",
    "Conv2D": "FieldfareConv2D",
    "DepthwiseConv2dNative": "FieldfareDepthwiseConv2D",
    "MaxPool": "FieldfareMaxPool",
    "AvgPool": "FieldfareAvgPool",
    "StridedSlice": "FieldfareStridedSlice",
}


def overrides() -> AbstractContextManager[None]:
    """While tracing a tf.function: operations made inside get the gradients of this module."""
    return tf.compat.v1.get_default_graph().gradient_override_map(_OVERRIDES)


class _Window(NamedTuple):
    """One axis of a sliding window: output size, padding before and after, stride, dilation."""

    out: int
    before: int
    after: int
    stride: int
    dilation: int


def _window(op: Any, axis: int, size: int, kernel: int) -> _Window:
    stride, dilation = op.get_attr("strides")[axis], op.get_attr("dilations")[axis]
    reach = (kernel - 1) * dilation + 1
    if op.get_attr("padding") == b"VALID":
        return _Window((size - reach) // stride + 1, 0, 0, stride, dilation)
    if op.get_attr("padding") != b"SAME":
        raise UnsupportedLayerError(f"{op.name}: padding {op.get_attr('padding')!r} cannot be trained on a device")
    out = -(-size // stride)
    total = max((out - 1) * stride + reach - size, 0)
    return _Window(out, total // 2, total - total // 2, stride, dilation)


def _pad(x: Tensor, rows: _Window, columns: _Window) -> Tensor:
    pads = [[0, 0], [rows.before, rows.after], [columns.before, columns.after], [0, 0]]
    return tf.pad(x, pads) if np.any(pads) else x


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
    """Undo broadcasting. A bias is summed by a matrix product with ones, which XNNPACK runs and SUM it does not."""
    if x.shape == dy.shape:
        return dy
    rows, width = int(np.prod(dy.shape[:-1])), dy.shape[-1]
    if x.shape.rank and x.shape[-1] == width and int(np.prod(x.shape)) == width:
        return tf.reshape(tf.matmul(tf.ones([1, rows]), tf.reshape(dy, [rows, width])), x.shape)
    added = dy.shape.rank - x.shape.rank
    axes = [*range(added), *(added + axis for axis, size in enumerate(x.shape) if size == 1)]
    return tf.reshape(tf.reduce_sum(dy, axes), x.shape)


@tf.RegisterGradient("FieldfareConv2D")
def _conv2d(op: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    x, kernel = op.inputs
    height, width, channels_in, channels_out = kernel.shape
    rows, columns = _window(op, 1, x.shape[1], height), _window(op, 2, x.shape[2], width)
    dx = tf.compat.v1.nn.conv2d_backprop_input(
        x.shape.as_list(),
        kernel,
        dy,
        op.get_attr("strides"),
        op.get_attr("padding").decode(),
        dilations=op.get_attr("dilations"),
    )
    padded = _pad(x, rows, columns)
    if height == width == 1:
        taken = padded[:, :: rows.stride, :: columns.stride, :]
        flat_x, flat_dy = tf.reshape(taken, [-1, channels_in]), tf.reshape(dy, [-1, channels_out])
        return dx, tf.reshape(tf.matmul(flat_x, flat_dy, transpose_a=True), kernel.shape)
    return dx, _kernel_gradient(padded, dy, kernel, rows, columns)


def _kernel_gradient(padded: Tensor, dy: Tensor, kernel: Tensor, rows: _Window, columns: _Window) -> Tensor:
    """A convolution itself: batch and channels change places, stride and dilation too.

    dW[i, j, p, q] = sum over b, u, v of x[b, u * stride + i * dilation, v * stride + j * dilation, p] * dy[b, u, v, q]
    """
    height, width = kernel.shape[:2]
    need_rows = (rows.out - 1) * rows.stride + 1 + (height - 1) * rows.dilation
    need_columns = (columns.out - 1) * columns.stride + 1 + (width - 1) * columns.dilation
    gradient = tf.nn.conv2d(
        tf.transpose(padded, [3, 1, 2, 0])[:, :need_rows, :need_columns, :],
        tf.transpose(dy, [1, 2, 0, 3]),
        strides=[1, rows.dilation, columns.dilation, 1],
        padding="VALID",
        dilations=[1, rows.stride, columns.stride, 1],
    )
    return tf.transpose(gradient, [1, 2, 0, 3])


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
    sums = []
    for i in range(height):
        for j in range(width):
            top, left = i * rows.dilation, j * columns.dilation
            bottom, right = top + (rows.out - 1) * rows.stride + 1, left + (columns.out - 1) * columns.stride + 1
            taken = padded[:, top : bottom : rows.stride, left : right : columns.stride, :]
            sums.append(tf.reduce_sum(taken * dy, [0, 1, 2]))
    kernel_gradient = tf.reshape(tf.stack(sums), [height, width, channels, 1])
    spread = _spread(dy, rows, columns)
    reach = (height - 1) * rows.dilation, (width - 1) * columns.dilation
    after_rows = x.shape[1] - spread.shape[1] + rows.before
    after_columns = x.shape[2] - spread.shape[2] + columns.before
    framed = tf.pad(
        spread,
        [[0, 0], [reach[0] - rows.before, after_rows], [reach[1] - columns.before, after_columns], [0, 0]],
    )
    flipped = tf.reverse(kernel, [0, 1])
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
    """Each entry `height` x `width` times, by a product with ones (five dimensions at most)."""
    batch, rows, columns, channels = small.shape
    tall = tf.reshape(small, [batch * rows, 1, columns, 1, channels]) * tf.ones([1, height, 1, width, 1])
    return tf.reshape(tall, [batch, rows * height, columns * width, channels])


def _fit(x: Tensor, rows: int, columns: int, fill: float, *, top: int = 0, left: int = 0) -> Tensor:
    """Pad the beginning of both image axes by `top` and `left`, then cut or pad their end."""
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
    return _fit(dx[:, top:, left:, :], x.shape[1], x.shape[2], 0.0)


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
