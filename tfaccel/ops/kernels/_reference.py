"""TensorFlow's own ops, in every direction, as Keras's layers use them.

Each function has a kernel's signature. Where an op of TensorFlow does not serve a case
(grouped convolutions on a CPU, strides together with dilation), the nearest that does.
"""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfaccel.compat.empty_batch import filled
from tfaccel.compat.tensorflow_private import onednn_is_on
from tfaccel.ops.kernels._geometry import padded as with_padding
from tfaccel.ops.kernels._geometry import seen_by, sizes, window_offsets
from tfaccel.ops.kernels._spec import CONVOLUTIONS, CallSpec
from tfaccel.system.device import current_device

Function = Callable[..., tf.Tensor]


def function(op: str, direction: str) -> Function:
    """TensorFlow's way to compute one direction of an op."""
    kind = "convolution" if op in CONVOLUTIONS else op
    return _FUNCTIONS[kind][direction]


def on(dtype: Any, reference: Function) -> Function:
    """`reference` with its operands and its result converted: computed in another dtype."""

    def converted(spec: CallSpec, a: tf.Tensor, b: tf.Tensor, *shape: tf.Tensor) -> tf.Tensor:
        result = reference(spec, tf.cast(a, dtype), tf.cast(b, dtype), *shape)
        return tf.cast(result, spec.dtype)

    return converted


def _is_plain(spec: CallSpec) -> bool:
    """Whether the ops for gradients serve the call on a CPU."""
    return spec.groups == 1 and set(spec.dilation) == {1}


def _needs_wide_filters(spec: CallSpec) -> bool:
    """TensorFlow has no convolution with strides and dilation."""
    return max(spec.strides) > 1 and max(spec.dilation) > 1


def _for_empty_batches(forward: Function) -> Function:
    """A forward convolution with the right shape for empty batches, which oneDNN's lacks."""

    @functools.wraps(forward)
    def run(spec: CallSpec, x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        if onednn_is_on() and current_device().kind == "CPU":
            return filled(lambda x: forward(spec, x, w), x)
        return forward(spec, x, w)

    return run


@_for_empty_batches
def convolution(spec: CallSpec, x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    """The forward convolution of one to three dimensions."""
    dilation = spec.dilation
    if _needs_wide_filters(spec):
        w, dilation = _widened(spec, w), (1,) * len(dilation)
    arguments = (x, w, spec.strides, spec.padding.upper())
    if spec.groups == 1:
        return tf.nn.convolution(*arguments, dilations=dilation)

    # TensorFlow's CPU kernels lack groups, so Keras compiles them by XLA too.
    @tf.function(jit_compile=True, autograph=False)
    def grouped(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        return tf.nn.convolution(x, w, *arguments[2:], dilations=dilation)

    return grouped(x, w)


def _widened(spec: CallSpec, w: tf.Tensor) -> tf.Tensor:
    """The filters with zeros between their taps, which is what dilation means."""
    split = [part for k in spec.kernel_size for part in (k, 1)]
    gaps = [pair for d in spec.dilation for pair in ((0, 0), (0, d - 1))]
    apart = tf.pad(tf.reshape(w, [*split, *w.shape[-2:]]), [*gaps, (0, 0), (0, 0)])
    wide = [k * d for k, d in zip(spec.kernel_size, spec.dilation, strict=True)]
    apart = tf.reshape(apart, [*wide, *w.shape[-2:]])
    ends = zip(spec.kernel_size, spec.dilation, strict=True)
    return apart[tuple(slice(None, (k - 1) * d + 1) for k, d in ends)]


def _as_2d(spec: CallSpec, x: tf.Tensor) -> tf.Tensor:
    """A one-dimensional convolution's tensor as an image of one row."""
    return tf.expand_dims(x, 1) if len(spec.strides) == 1 else x


def _op_arguments(spec: CallSpec) -> dict[str, Any]:
    one_row = (1,) if len(spec.strides) == 1 else ()
    strides = [1, *one_row, *spec.strides, 1]
    return {"strides": strides, "padding": spec.padding.upper()}


def _convolution_input_gradient(
    spec: CallSpec, dy: tf.Tensor, w: tf.Tensor, shape: tf.Tensor
) -> tf.Tensor:
    if not _is_plain(spec):
        x = tf.zeros(shape, dy.dtype)
        return _by_tape(lambda x: convolution(spec, x, w), x, dy)
    if len(spec.strides) == 3:
        return tf.raw_ops.Conv3DBackpropInputV2(
            input_sizes=shape, filter=w, out_backprop=dy, **_op_arguments(spec)
        )
    flat = len(spec.strides) == 1
    made = tf.raw_ops.Conv2DBackpropInput(
        input_sizes=tf.concat([shape[:1], [1], shape[1:]], 0) if flat else shape,
        filter=w[tf.newaxis] if flat else w,
        out_backprop=_as_2d(spec, dy),
        **_op_arguments(spec),
    )
    return made[:, 0] if flat else made


def _convolution_weight_gradient(
    spec: CallSpec, x: tf.Tensor, dy: tf.Tensor, shape: tf.Tensor
) -> tf.Tensor:
    if not _is_plain(spec):
        w = tf.zeros(spec.w, dy.dtype)
        return _by_tape(lambda w: convolution(spec, x, w), w, dy)
    if len(spec.strides) == 3:
        return tf.raw_ops.Conv3DBackpropFilterV2(
            input=x, filter_sizes=shape, out_backprop=dy, **_op_arguments(spec)
        )
    flat = len(spec.strides) == 1
    made = tf.raw_ops.Conv2DBackpropFilter(
        input=_as_2d(spec, x),
        filter_sizes=tf.concat([[1], shape], 0) if flat else shape,
        out_backprop=_as_2d(spec, dy),
        **_op_arguments(spec),
    )
    return made[0] if flat else made


def _by_tape(function: Callable[[tf.Tensor], tf.Tensor], at: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
    """The gradient as TensorFlow's own differentiation makes it."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(at)
        y = function(at)
    return tape.gradient(y, at, output_gradients=dy)


def _is_plain_depthwise(spec: CallSpec) -> bool:
    return len(set(spec.strides)) == 1 and not _needs_wide_filters(spec)


@_for_empty_batches
def depthwise(spec: CallSpec, x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    """The forward depthwise convolution."""
    if not _is_plain_depthwise(spec):
        return _tap_by_tap(spec, x, w)
    strides = [1, *spec.strides, 1]
    return tf.nn.depthwise_conv2d(
        x, w, strides, spec.padding.upper(), dilations=list(spec.dilation)
    )


def _tap_by_tap(spec: CallSpec, x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    """What TensorFlow's op does not do: unequal strides, strides with dilation."""
    full = with_padding(spec, x)
    parts = [
        seen_by(spec, full, offset)[..., tf.newaxis] * w[offset] for offset in window_offsets(spec)
    ]
    total = tf.add_n(parts)
    return tf.reshape(total, [*sizes(total)[:-2], w.shape[-2] * w.shape[-1]])


def _depthwise_input_gradient(
    spec: CallSpec, dy: tf.Tensor, w: tf.Tensor, shape: tf.Tensor
) -> tf.Tensor:
    if not _is_plain_depthwise(spec) or not _is_plain(spec):
        x = tf.zeros(shape, dy.dtype)
        return _by_tape(lambda x: depthwise(spec, x, w), x, dy)
    return tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
        input_sizes=shape, filter=w, out_backprop=dy, **_op_arguments(spec)
    )


def _depthwise_weight_gradient(
    spec: CallSpec, x: tf.Tensor, dy: tf.Tensor, shape: tf.Tensor
) -> tf.Tensor:
    if not _is_plain_depthwise(spec) or not _is_plain(spec):
        w = tf.zeros(spec.w, dy.dtype)
        made = _by_tape(lambda w: depthwise(spec, x, w), w, dy)
    else:
        made = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=x, filter_sizes=shape, out_backprop=dy, **_op_arguments(spec)
        )
    if x.shape[0]:
        return made
    # The op leaves its result as it finds it where the batch is empty.
    return tf.where(tf.size(x) > 0, made, tf.zeros_like(made))


def matmul(spec: CallSpec, x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    """The product of matrices, or of batches of them."""
    if len(spec.w) > 2 or len(spec.x) == 2:
        return tf.matmul(x, w)
    # As keras.ops.matmul does: one large product, where tf.matmul does one a matrix.
    flat = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), w)
    return tf.reshape(flat, [*sizes(x)[:-1], w.shape[-1]])


def _matmul_input_gradient(
    spec: CallSpec, dy: tf.Tensor, w: tf.Tensor, shape: tf.Tensor
) -> tf.Tensor:
    if len(spec.w) > 2:
        return summed_to(tf.matmul(dy, w, transpose_b=True), shape)
    flat = tf.matmul(tf.reshape(dy, [-1, dy.shape[-1]]), w, transpose_b=True)
    return tf.reshape(flat, shape)


def _matmul_weight_gradient(
    spec: CallSpec, x: tf.Tensor, dy: tf.Tensor, shape: tf.Tensor
) -> tf.Tensor:
    if len(spec.w) > 2:
        return summed_to(tf.matmul(x, dy, transpose_a=True), shape)
    rows, grown = (tf.reshape(t, [-1, t.shape[-1]]) for t in (x, dy))
    return tf.matmul(rows, grown, transpose_a=True)


def summed_to(gradient: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """The sum over the batch dimensions along which an operand was broadcast."""
    axes = tf.raw_ops.BroadcastGradientArgs(s0=tf.shape(gradient), s1=shape).r1
    return tf.reshape(tf.reduce_sum(gradient, axes), shape)


_FUNCTIONS: dict[str, dict[str, Function]] = {
    "convolution": {
        "forward": convolution,
        "input_gradient": _convolution_input_gradient,
        "weight_gradient": _convolution_weight_gradient,
    },
    "depthwise_conv2d": {
        "forward": depthwise,
        "input_gradient": _depthwise_input_gradient,
        "weight_gradient": _depthwise_weight_gradient,
    },
    "matmul": {
        "forward": matmul,
        "input_gradient": _matmul_input_gradient,
        "weight_gradient": _matmul_weight_gradient,
    },
}
