"""A depthwise weight gradient as a depthwise convolution of the input by the output's gradient."""

import tensorflow as tf

from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.ops.kernels._geometry import padded, sizes, spread
from tfaccel.ops.kernels._kernel import kernels_of
from tfaccel.ops.kernels._spec import CallSpec


def _refusal(spec: CallSpec) -> Unsupported | None:
    if len(set(spec.dilation)) > 1:
        return Refusal.SHAPE("its dilations differ, and would become strides, which must be equal")
    if 0 in (*spec.x, *spec.w):
        return Refusal.SIZES("it has nothing to compute, and would have no channels")
    return None


def _weight_gradient(spec: CallSpec, x: tf.Tensor, dy: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """`dw[o, c] = sum over p of x[stride p + dilation o, c] dy[p, c]`, each image on its own.

    The output's gradient, with zeros between its pixels where there is a stride, is the window,
    and each channel of each image a channel.
    """
    (high, across), channels, each = spec.kernel_size, spec.w[-2], spec.w[-1]
    images = sizes(x)[0]
    window = spread(spec, dy)
    # Not the zeros after the last pixel.
    ends = [n - s + 1 for n, s in zip(sizes(window)[1:-1], spec.strides, strict=True)]
    window = window[:, : ends[0], : ends[1]]
    reach = [n + spec.dilation[0] * (k - 1) for n, k in zip(ends, (high, across), strict=True)]
    seen = padded(spec, x)[:, : reach[0], : reach[1]]
    beside = tf.reshape(tf.transpose(seen, [1, 2, 0, 3]), [1, *reach, images * channels])
    filters = tf.reshape(tf.transpose(window, [1, 2, 0, 3]), [*ends, images * channels, each])
    step = spec.dilation[0]
    found = tf.nn.depthwise_conv2d(beside, filters, [1, step, step, 1], "VALID")
    found = tf.reshape(found, [high, across, images, channels, each])
    dtype = tf.float32 if x.dtype in (tf.float16, tf.bfloat16) else x.dtype
    return tf.cast(tf.reduce_sum(tf.cast(found, dtype), 2), x.dtype)


def _unless_empty(spec: CallSpec, x: tf.Tensor, dy: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    if None not in (*x.shape, *dy.shape):
        return _weight_gradient(spec, x, dy, shape)
    # An empty batch may come, which would be no channels.
    return tf.cond(
        tf.minimum(tf.size(x), tf.size(dy)) > 0,
        lambda: _weight_gradient(spec, x, dy, shape),
        lambda: tf.zeros(spec.w, x.dtype),
    )


KERNELS = kernels_of(
    {"weight_gradient": _unless_empty},
    ("depthwise_conv2d",),
    name="exchanged",
    unsupported=_refusal,
    summary="a depthwise convolution of the input by the output's gradient, image by image",
    source="Dumoulin and Visin, A guide to convolution arithmetic, "
    "https://arxiv.org/abs/1603.07285, section 4",
)
