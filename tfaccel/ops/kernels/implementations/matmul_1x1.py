"""A convolution whose window is one pixel, as the matrix product that it is."""

import tensorflow as tf

from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.ops.kernels._geometry import fitted, rows, sizes, spatial_sizes, spread
from tfaccel.ops.kernels._kernel import kernels_of
from tfaccel.ops.kernels._spec import CallSpec


def _refusal(spec: CallSpec) -> Unsupported | None:
    if set(spec.kernel_size) != {1}:
        return Refusal.SHAPE("its window is more than one pixel")
    return Refusal.SHAPE("it has groups") if spec.groups > 1 else None


def _seen(spec: CallSpec, x: tf.Tensor) -> tf.Tensor:
    """The pixels that the strides step on; a window of one pixel has no padding."""
    return x[(slice(None), *(slice(None, None, s) for s in spec.strides))]


def _forward(spec: CallSpec, x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    """`y = X w`, where `X` is `(pixels, channels)`."""
    x = _seen(spec, x)
    y = tf.matmul(rows(x), tf.reshape(w, w.shape[-2:]))
    return tf.reshape(y, [*sizes(x)[:-1], w.shape[-1]])


def _input_gradient(spec: CallSpec, dy: tf.Tensor, w: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """`dX = dY w'`, with zeros at the pixels that strides step over."""
    dx = tf.matmul(rows(dy), tf.reshape(w, w.shape[-2:]), transpose_b=True)
    if set(spec.strides) == {1}:
        return tf.reshape(dx, shape)
    apart = spread(spec, tf.reshape(dx, [*sizes(dy)[:-1], w.shape[-2]]))
    return fitted(apart, spatial_sizes(spec, shape))


def _weight_gradient(spec: CallSpec, x: tf.Tensor, dy: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """`dw = X' dY`."""
    return tf.reshape(tf.matmul(rows(_seen(spec, x)), rows(dy), transpose_a=True), shape)


KERNELS = kernels_of(
    {"forward": _forward, "input_gradient": _input_gradient, "weight_gradient": _weight_gradient},
    name="matmul_1x1",
    unsupported=_refusal,
    summary="one matrix product over all pixels",
    source="Lin et al., Network in Network, https://arxiv.org/abs/1312.4400, section 3.2",
)
