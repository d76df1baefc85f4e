"""TensorFlow's own ops, in every direction, as Keras's layers use them.

Each function has a kernel's signature. Where an op of TensorFlow does not serve a case
(grouped convolutions on a CPU, strides together with dilation), the nearest that does.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfaccel.compat.empty_batch import filled
from tfaccel.compat.tensorflow_private import onednn_is_on
from tfaccel.ops.kernels._geometry import padded as with_padding
from tfaccel.ops.kernels._geometry import rows, seen_by, sizes, window_offsets
from tfaccel.ops.kernels._spec import CallSpec
from tfaccel.system.device import current_device

Function = Callable[..., tf.Tensor]


def function(op: str, direction: str) -> Function:
    """TensorFlow's way to compute one direction of an op."""
    if op == "matmul":
        return _matmul
    if direction != "forward":
        return _gradient
    return depthwise if op == "depthwise_conv2d" else convolution


def call(spec: CallSpec, *tensors: tf.Tensor) -> tf.Tensor:
    """A call by TensorFlow's op, in the direction that `spec` has."""
    return function(spec.op, spec.direction)(spec, *tensors)


def on(dtype: Any, reference: Function) -> Function:
    """`reference` with its operands and its result converted: computed in another dtype."""

    def converted(spec: CallSpec, a: tf.Tensor, b: tf.Tensor, *shape: tf.Tensor) -> tf.Tensor:
        result = reference(spec, tf.cast(a, dtype), tf.cast(b, dtype), *shape)
        return tf.cast(result, spec.dtype)

    return converted


def as_images(reference: Function) -> Function:
    """A convolution of images, in any direction, which serves sequences as images of one row."""

    def run(spec: CallSpec, a: tf.Tensor, b: tf.Tensor, *shape: tf.Tensor) -> tf.Tensor:
        if spec.op != "conv1d":
            return reference(spec, a, b, *shape)
        of_weights = spec.direction == "weight_gradient"
        # The row stands behind the batch, and before the window of weights.
        second, made = (1, 0) if of_weights else (0, 1)
        image = dataclasses.replace(
            spec,
            op="conv2d",
            x=(spec.x[0], 1, *spec.x[1:]),
            w=(1, *spec.w),
            strides=(1, *spec.strides),
            dilation=(1, *spec.dilation),
        )
        wide = [tf.concat([one[:made], [1], one[made:]], 0) for one in shape]
        operands = tf.expand_dims(a, 1), tf.expand_dims(b, second)
        return tf.squeeze(reference(image, *operands, *wide), made)

    return run


def _is_plain(spec: CallSpec) -> bool:
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
    """The filters with dilation's zeros between the positions of their window."""
    split = [part for k in spec.kernel_size for part in (k, 1)]
    gaps = [pair for d in spec.dilation for pair in ((0, 0), (0, d - 1))]
    apart = tf.pad(tf.reshape(w, [*split, *w.shape[-2:]]), [*gaps, (0, 0), (0, 0)])
    wide = [k * d for k, d in zip(spec.kernel_size, spec.dilation, strict=True)]
    apart = tf.reshape(apart, [*wide, *w.shape[-2:]])
    ends = zip(spec.kernel_size, spec.dilation, strict=True)
    return apart[tuple(slice(None, (k - 1) * d + 1) for k, d in ends)]


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


def _gradient(spec: CallSpec, a: tf.Tensor, b: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Both gradients of all convolutions."""
    depthwise = spec.op == "depthwise_conv2d"
    plain = _is_plain(spec) and (not depthwise or _is_plain_depthwise(spec))
    made = (_by_op if plain else _by_tape)(spec, a, b, shape)
    if not depthwise or spec.direction == "input_gradient" or a.shape[0]:
        return made
    # For an empty batch the op leaves its result uninitialised.
    return tf.where(tf.size(a) > 0, made, tf.zeros_like(made))


@as_images
def _by_op(spec: CallSpec, a: tf.Tensor, b: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    of_input, of_filter = _GRADIENTS[spec.op]
    window = {"strides": [1, *spec.strides, 1], "padding": spec.padding.upper()}
    if spec.direction == "input_gradient":
        return of_input(input_sizes=shape, filter=b, out_backprop=a, **window)
    return of_filter(input=a, filter_sizes=shape, out_backprop=b, **window)


def _by_tape(spec: CallSpec, a: tf.Tensor, b: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """The gradient as TensorFlow's own differentiation makes it."""
    forward, of_input = function(spec.op, "forward"), spec.direction == "input_gradient"
    # A product is linear, so that its gradient is the same everywhere.
    at = tf.zeros(shape if of_input else spec.w, a.dtype)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(at)
        y = forward(spec, at, b) if of_input else forward(spec, a, at)
    return tape.gradient(y, at, output_gradients=a if of_input else b)


def products_by(matmul: Function) -> Function:
    """Products of matrices, or of batches of them that broadcast, in any direction.

    `x w`, `dy w'` and `x' dy`, the gradients summed over the batches along which an operand was
    broadcast.

    Args:
        matmul: with the arguments of `tf.matmul`.
    """

    def run(spec: CallSpec, a: tf.Tensor, b: tf.Tensor, *shape: tf.Tensor) -> tf.Tensor:
        turned = _TURNED[spec.direction]
        if len(spec.w) > 2:
            made = matmul(a, b, **turned)
            return summed_to(made, *shape) if shape else made
        if len(spec.x) == 2:
            return matmul(a, b, **turned)
        # As keras.ops.matmul does: one large product, where tf.matmul does one a matrix.
        made = matmul(rows(a), rows(b), **turned)
        return tf.reshape(made, *(shape or [[*sizes(a)[:-1], b.shape[-1]]]))

    return run


def summed_to(gradient: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """The sum over the batch dimensions along which an operand was broadcast."""
    axes = tf.raw_ops.BroadcastGradientArgs(s0=tf.shape(gradient), s1=shape).r1
    return tf.reshape(tf.reduce_sum(gradient, axes), shape)


# By op: TensorFlow's op for the gradient of the input, and that for the weights'.
_GRADIENTS: dict[str, tuple[Function, Function]] = {
    "conv2d": (tf.raw_ops.Conv2DBackpropInput, tf.raw_ops.Conv2DBackpropFilter),
    "conv3d": (tf.raw_ops.Conv3DBackpropInputV2, tf.raw_ops.Conv3DBackpropFilterV2),
    "depthwise_conv2d": (
        tf.raw_ops.DepthwiseConv2dNativeBackpropInput,
        tf.raw_ops.DepthwiseConv2dNativeBackpropFilter,
    ),
}
_TURNED: dict[str, dict[str, bool]] = {
    "forward": {},
    "input_gradient": {"transpose_b": True},
    "weight_gradient": {"transpose_a": True},
}
_matmul = products_by(tf.matmul)
