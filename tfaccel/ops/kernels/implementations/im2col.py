"""A convolution as one matrix product over a copy of what every window sees."""

import tensorflow as tf

from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.ops.kernels._geometry import folded, padded, rows, seen_by, sizes, window_offsets
from tfaccel.ops.kernels._kernel import kernels_of
from tfaccel.ops.kernels._spec import CallSpec


def _refusal(spec: CallSpec) -> Unsupported | None:
    if set(spec.kernel_size) == {1}:
        return Refusal.NO_USE("its window is one pixel, so there is nothing to gather")
    return Refusal.SHAPE("it has groups") if spec.groups > 1 else None


def _columns(spec: CallSpec, x: tf.Tensor) -> tf.Tensor:
    """For each output all that its window sees, in the order in which the weights have it."""
    full = padded(spec, x)
    return tf.concat([seen_by(spec, full, offset) for offset in window_offsets(spec)], -1)


def _forward(spec: CallSpec, x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    """`Y = C W`: `C` is `(pixels, window * channels)`, `W` `(window * channels, filters)`."""
    columns = _columns(spec, x)
    y = tf.matmul(rows(columns), rows(w))
    return tf.reshape(y, [*sizes(columns)[:-1], w.shape[-1]])


def _input_gradient(spec: CallSpec, dy: tf.Tensor, w: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """`dC = dY W'`; a pixel's gradient is the sum over the windows that see it."""
    columns = tf.matmul(rows(dy), rows(w), transpose_b=True)
    count, channels = len(list(window_offsets(spec))), w.shape[-2]
    columns = tf.reshape(columns, [*sizes(dy)[:-1], count * channels])
    return folded(spec, tf.split(columns, count, axis=-1), shape)


def _weight_gradient(spec: CallSpec, x: tf.Tensor, dy: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """`dW = C' dY`."""
    return tf.reshape(tf.matmul(rows(_columns(spec, x)), rows(dy), transpose_a=True), shape)


KERNELS = kernels_of(
    {"forward": _forward, "input_gradient": _input_gradient, "weight_gradient": _weight_gradient},
    name="im2col",
    unsupported=_refusal,
    summary="one matrix product over the gathered windows",
    source="Chellapilla et al., High Performance Convolutional Neural Networks for Document "
    "Processing (2006), https://inria.hal.science/inria-00112631",
)
