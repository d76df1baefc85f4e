"""Convolutions and matrix products whose kernels are chosen by measurement.

The functions mean what their namesakes in `keras.ops` mean, and can be used wherever those
can: eagerly, inside `tf.function`, under XLA, `tf.GradientTape` (of any order) and
`tf.distribute`. Each of the forward pass, the input gradient and the weight gradient is
computed by the kernel that `find` found fastest for its shapes, and by TensorFlow's own
where none was measured. No kernel is ever differentiated: the gradients of a product, and
theirs, are products again.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.ops.attention import scaled_dot_product_attention
from tfaccel.ops.kernels import (
    OPS,
    CallSpec,
    Choose,
    Kernel,
    Store,
    convolution_spec,
    data_format,
    find,
    kernels,
    matmul_spec,
    opencl_devices,
    product,
    reference,
    register_kernel,
    tensors,
    unregister_kernel,
)
from tfaccel.system.arguments import one_of

__all__ = [
    "OPS",
    "conv1d",
    "conv2d",
    "conv3d",
    "depthwise_conv2d",
    "find",
    "kernels",
    "matmul",
    "opencl_devices",
    "register_kernel",
    "scaled_dot_product_attention",
    "unregister_kernel",
]

Activation = str | Callable[[Any], Any] | None
Sizes = int | tuple[int, ...]


def conv1d(
    x: Any,
    filters: Any,
    strides: Sizes = 1,
    padding: str = "valid",
    dilation_rate: Sizes = 1,
    groups: int = 1,
    data_format: str | None = None,
    bias: Any = None,
    activation: Activation = None,
    kernel: str | None = None,
) -> tf.Tensor:
    """A convolution over sequences, as `keras.ops.conv`.

    Args:
        x: `(batch, steps, channels)`, or `(batch, channels, steps)`, of a floating-point dtype.
        filters: `(kernel, channels / groups, filters)`, in the dtype of `x`.
        strides, dilation_rate: ints.
        padding: `"valid"`, `"same"`, or `"causal"`, where no output sees later steps.
        groups: how many groups the channels are cut into.
        data_format: `"channels_last"`, `"channels_first"`, or None for Keras's setting.
        bias: `(filters,)`, added to the result.
        activation: applied to the result; a name or a function, as in Keras's layers.
        kernel: the name of a kernel (docs/kernels.md), used in all directions that it has; None
            for those that measuring chose.

    Returns:
            `(batch, new steps, filters)`, or with the filters second, in the operands' dtype.

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names it.

    Source: https://keras.io/api/ops/nn/#conv-function

    >>> tfaccel.ops.conv1d(tf.ones((1, 4, 2)), tf.ones((3, 2, 1)), padding="causal")[0, :, 0]
    <tf.Tensor: shape=(4,), dtype=float32, numpy=array([2., 4., 6., 6.], dtype=float32)>
    """
    return convolve(
        *("conv1d", x, filters, strides, padding, dilation_rate, groups),
        *(data_format, bias, activation, _choice("conv1d", kernel)),
    )


def conv2d(
    x: Any,
    filters: Any,
    strides: Sizes = 1,
    padding: str = "valid",
    dilation_rate: Sizes = 1,
    groups: int = 1,
    data_format: str | None = None,
    bias: Any = None,
    activation: Activation = None,
    kernel: str | None = None,
) -> tf.Tensor:
    """A convolution over images, as `keras.ops.conv`.

    Args:
        x: `(batch, height, width, channels)`, or `(batch, channels, height, width)`.
        filters: `(kernel height, kernel width, channels / groups, filters)`.
        strides, dilation_rate: ints, or one for each of height and width.
        padding: `"valid"` or `"same"`.
        groups, data_format, bias, activation, kernel: as for `conv1d`.

    Returns:
        `(batch, new height, new width, filters)`, or with the filters second.

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names it.

    Source: https://keras.io/api/ops/nn/#conv-function

    >>> tfaccel.ops.conv2d(tf.ones((1, 5, 5, 3)), tf.ones((3, 3, 3, 8)), strides=2).shape
    TensorShape([1, 2, 2, 8])
    """
    return convolve(
        *("conv2d", x, filters, strides, padding, dilation_rate, groups),
        *(data_format, bias, activation, _choice("conv2d", kernel)),
    )


def conv3d(
    x: Any,
    filters: Any,
    strides: Sizes = 1,
    padding: str = "valid",
    dilation_rate: Sizes = 1,
    groups: int = 1,
    data_format: str | None = None,
    bias: Any = None,
    activation: Activation = None,
    kernel: str | None = None,
) -> tf.Tensor:
    """A convolution over volumes, as `keras.ops.conv`.

    Args:
        x: `(batch, depth, height, width, channels)`, or with the channels second.
        filters: `(kernel depth, kernel height, kernel width, channels / groups, filters)`.
        strides, dilation_rate: ints, or one for each of the three dimensions.
        padding: `"valid"` or `"same"`.
        groups, data_format, bias, activation, kernel: as for `conv1d`.

    Returns:
        `(batch, new depth, new height, new width, filters)`, or with the filters second.

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names it.

    Source: https://keras.io/api/ops/nn/#conv-function

    >>> tfaccel.ops.conv3d(tf.ones((1, 4, 4, 4, 2)), tf.ones((2, 2, 2, 2, 5))).shape
    TensorShape([1, 3, 3, 3, 5])
    """
    return convolve(
        *("conv3d", x, filters, strides, padding, dilation_rate, groups),
        *(data_format, bias, activation, _choice("conv3d", kernel)),
    )


def depthwise_conv2d(
    x: Any,
    filters: Any,
    strides: Sizes = 1,
    padding: str = "valid",
    dilation_rate: Sizes = 1,
    data_format: str | None = None,
    bias: Any = None,
    activation: Activation = None,
    kernel: str | None = None,
) -> tf.Tensor:
    """A convolution of each channel by itself, as `keras.ops.depthwise_conv`.

    Args:
        x: as for `conv2d`.
        filters: `(kernel height, kernel width, channels, multiplier)`.
        strides, padding, dilation_rate, data_format, activation, kernel: as for `conv2d`.
        bias: `(channels * multiplier,)`.

    Returns:
        As `conv2d`, with `channels * multiplier` channels.

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names it.

    Source: https://keras.io/api/ops/nn/#depthwise_conv-function

    >>> tfaccel.ops.depthwise_conv2d(tf.ones((1, 5, 5, 4)), tf.ones((3, 3, 4, 2))).shape
    TensorShape([1, 3, 3, 8])
    """
    return convolve(
        *("depthwise_conv2d", x, filters, strides, padding, dilation_rate, 1),
        *(data_format, bias, activation, _choice("depthwise_conv2d", kernel)),
    )


def matmul(
    a: Any,
    b: Any,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: Any = None,
    activation: Activation = None,
    kernel: str | None = None,
) -> tf.Tensor:
    """A product of matrices, or of batches of them that broadcast, as `keras.ops.matmul`.

    Args:
        a: `(..., rows, inner)`, or with the last two exchanged if `transpose_a`.
        b: `(..., inner, columns)`, or with the last two exchanged if `transpose_b`.
        transpose_a, transpose_b: whether the last two dimensions are to be exchanged.
        bias: `(columns,)`, added to the result.
        activation, kernel: as for `conv1d`.

    Returns:
        `(..., rows, columns)`.

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names it.

    Source: https://keras.io/api/ops/numpy/#matmul-function

    >>> tfaccel.ops.matmul(tf.ones((7, 2, 3)), tf.ones((5, 3)), transpose_b=True).shape
    TensorShape([7, 2, 5])
    """
    a, b, dtype = tensors("a", a, "b", b)
    a = tf.linalg.matrix_transpose(a) if transpose_a else a
    b = tf.linalg.matrix_transpose(b) if transpose_b else b
    spec = matmul_spec(a.shape, b.shape, dtype)
    return _finished(product(spec, a, b, _choice("matmul", kernel)), bias, activation)


def measured(spec: CallSpec) -> Kernel:
    """The kernel that measuring chose for a call; TensorFlow's where nothing was measured."""
    ranking = Store.at().ranking(spec)
    return reference(spec.op, spec.direction) if ranking is None else ranking.kernel_for(spec)


def _choice(op: str, kernel: str | None) -> Choose:
    """A function that gives the kernel of a call: the measured one, or the one named `kernel`."""
    if kernel is None:
        return measured
    one_of("kernel", kernel, dict.fromkeys(known.name for known in kernels(op)))

    def choose(spec: CallSpec) -> Kernel:
        one = next((k for k in kernels(op, spec.direction) if k.name == kernel), None)
        if one is None:  # it is for other directions
            return reference(op, spec.direction)
        unsupported = one.unsupported(spec)
        if unsupported is not None:
            raise ValueError(
                f"`kernel` must serve the call {spec}. Received: {kernel!r}; {unsupported}"
            )
        return one

    return choose


def convolve(
    op: str,
    x: Any,
    filters: Any,
    strides: Any,
    padding: Any,
    dilation_rate: Any,
    groups: Any = 1,
    where: str | None = None,
    bias: Any = None,
    activation: Activation = None,
    choose: Choose = measured,
) -> tf.Tensor:
    """Any of the convolutions, the kernel given by a function.

    Args:
        op: the convolution, such as `"conv1d"`.
        x, filters, strides, padding, dilation_rate, groups, bias, activation: as for `conv2d`.
        where: the `data_format`.
        choose: gives the kernel of a call.

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names it.

    >>> y = convolve("conv1d", tf.ones((1, 3, 1)), tf.ones((2, 1, 1)), 1, "valid", 1)
    >>> y.shape
    TensorShape([1, 2, 1])
    """
    x, filters, dtype = tensors("x", x, "filters", filters)
    first = data_format(where) == "channels_first"
    if first:
        x = tf.transpose(x, _moved(x.shape.rank, 1, -1))
    if op == "conv1d" and padding == "causal":
        x, padding = _causal(x, filters, dilation_rate), "valid"
    more = {"dilation_rate": dilation_rate, "groups": groups}
    shapes = x.shape, filters.shape
    spec = convolution_spec(op, *shapes, dtype, strides=strides, padding=padding, **more)
    y = _finished(product(spec, x, filters, choose), bias, None)
    if first:
        # A GPU's layout optimizer cancels this with the transpose before.
        y = tf.transpose(y, _moved(y.shape.rank, -1, 1))
    return _finished(y, None, activation)


def _moved(rank: int, source: int, target: int) -> list[int]:
    """The permutation that moves one dimension to another place."""
    order = list(range(rank))
    order.insert(target % rank, order.pop(source))
    return order


def _causal(x: tf.Tensor, filters: tf.Tensor, dilation_rate: Any) -> tf.Tensor:
    """`x` with zeros before the first step, so that no output sees a later step."""
    rate = dilation_rate[0] if isinstance(dilation_rate, tuple | list) else dilation_rate
    return tf.pad(x, [(0, 0), (rate * (filters.shape[0] - 1), 0), (0, 0)])


def _finished(y: tf.Tensor, bias: Any, activation: Activation) -> tf.Tensor:
    if bias is not None:
        y = y + tf.cast(keras.ops.convert_to_tensor(bias), y.dtype)
    return y if activation is None else keras.activations.get(activation)(y)
