"""`keras.layers.LayerNormalization.call` with a gradient written by hand."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.core.derivatives import with_gradient
from tfaccel.core.unsupported import FLOAT32_OR_LESS, Unsupported, named, other_dtype, own_method


def obstacle(layer: Any) -> Unsupported | None:
    """Why this layer keeps Keras's own `call`, as far as it is known before a call."""
    if layer.rms_scaling:
        return Unsupported(f"{named(layer)} uses rms_scaling", "use keras.layers.RMSNormalization")
    if len(_axes(layer)) > 1:
        return Unsupported(
            f"{named(layer)} normalizes axes {_axes(layer)}", "normalize the last axis only"
        )
    return own_method(layer, keras.layers.LayerNormalization, "call") or other_dtype(layer)


def fused_call(layer: Any) -> Callable[..., Any]:
    """The layer's `call`, standardizing by `_standardised` where it may."""
    own_call = layer.call

    def call(inputs: Any) -> Any:
        if not _serves(layer, inputs):
            return own_call(inputs)
        y = _standardised(tf.cast(inputs, tf.float32), layer.epsilon)
        if layer.scale:
            y *= keras.ops.cast(layer.gamma, "float32")
        if layer.center:
            y += keras.ops.cast(layer.beta, "float32")
        return tf.cast(y, layer.compute_dtype)

    return call


def _axes(layer: Any) -> list[int]:
    return list(layer.axis) if isinstance(layer.axis, list | tuple) else [layer.axis]


def _serves(layer: Any, inputs: Any) -> bool:
    return (
        isinstance(inputs, tf.Tensor)
        and inputs.shape.rank is not None
        and _axes(layer) in ([-1], [inputs.shape.rank - 1])
        # Where these two dtypes differ, Keras's versions round differently.
        and inputs.dtype.name == layer.compute_dtype
        and layer.compute_dtype in FLOAT32_OR_LESS
    )


def _standardised(x: tf.Tensor, epsilon: float) -> tf.Tensor:
    """`(x - mean) / sqrt(variance + epsilon)` over the last axis.

    TensorFlow's own gradient of this walks back through mean, variance and
    square; the closed form needs two means. It makes a layer's forward and gradient
    1.4 times as fast (float32 and bfloat16, 32x128x256 and 8x196x768, on two
    cores of a Zen 3). Second derivatives are those of Keras's own ops.
    """
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)
    result = centred * inverse

    def gradient(dy: tf.Tensor) -> list[tf.Tensor]:
        """`dx = i (dy - mean(dy) - y mean(dy y))`, means over the last axis, `i = 1 / std`."""
        along = tf.reduce_mean(dy * result, -1, keepdims=True)
        return [inverse * (dy - tf.reduce_mean(dy, -1, keepdims=True) - result * along)]

    def plain(x: tf.Tensor) -> tf.Tensor:
        # It stops the gradient of the mean in the variance, as in Keras's layer.
        mean, variance = keras.ops.moments(x, axes=[-1], keepdims=True)
        return (x - mean) * tf.math.rsqrt(variance + epsilon)

    return with_gradient([x], lambda: result, gradient, plain)
