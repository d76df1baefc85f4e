"""`keras.layers.BatchNormalization.call` by few loops, or as one FusedBatchNormV3."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.compat import keras_graphs, keras_private
from tfaccel.core.derivatives import with_gradient
from tfaccel.core.unsupported import (
    FLOAT32_OR_LESS,
    Unsupported,
    kind_of,
    named,
    other_dtype,
    own_method,
)
from tfaccel.ops.activations import RELU, RELU6, ActivationFormula, formula_of
from tfaccel.ops.batch_norm import Normalised, by_keras, moments

# The attribute of a BatchNormalization's result that holds what it was computed from.
_NORMALISED = "_tfaccel_normalised"
_PYTHON_TRUTH = (bool, int, np.bool_, type(None))


def obstacle(layer: Any, channels_first: bool) -> Unsupported | None:
    """Why this layer keeps Keras's own `call`, as far as it is known before a call.

    `channels_first` is whether the device's op takes NCHW (a CPU's does not).
    """
    own = own_method(layer, keras.layers.BatchNormalization, "call", "_moments")
    if own is not None:
        return own
    if getattr(layer, "renorm", False):
        return Unsupported(f"{named(layer)} uses batch renormalization", "use renorm=False")
    if layer.synchronized:
        return Unsupported(f"{named(layer)} synchronizes its statistics", "use synchronized=False")
    rank = layer.input_spec.ndim if layer.built and layer.input_spec else None
    if rank is not None and _data_format(layer.axis, rank, channels_first) is None:
        where = f"axis {layer.axis} of {rank}-D inputs"
        return Unsupported(f"{named(layer)} normalizes {where}", "put the channels last")
    return other_dtype(layer)


def fused_call(layer: Any, channels_first: bool, least_numbers: float) -> Callable[..., Any]:
    """The layer's `call`, by loops or FusedBatchNormV3 wherever that is the same maths.

    Loops are compiled for float32 inputs whose sizes are known, of at least so many numbers a
    sample; the latter may be infinite.
    """
    own_call = layer.call

    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        data_format = None
        if isinstance(inputs, tf.Tensor) and inputs.shape.rank is not None:
            data_format = _data_format(layer.axis, inputs.shape.rank, channels_first)
        if (
            data_format is None
            or mask is not None
            or not isinstance(training, _PYTHON_TRUTH)
            or inputs.dtype.name not in FLOAT32_OR_LESS
            or layer.compute_dtype not in FLOAT32_OR_LESS
        ):
            return own_call(inputs, training=training, mask=mask)
        # The output has its input's dtype, so other inputs are cast as Keras casts them.
        x = inputs if inputs.dtype == layer.compute_dtype else tf.cast(inputs, tf.float32)
        turned = data_format == "NCHW" and not channels_first
        if turned:
            x, data_format = _channels_last(x), "NHWC"
        if _is_for_loops(x, least_numbers):
            y = _by_loops(layer, x, bool(training))
        else:
            y = _by_op(layer, x, bool(training), data_format)
        return tf.cast(_channels_first(y) if turned else y, layer.compute_dtype)

    return call


def may_join(layer: Any) -> bool:
    """Whether a layer is an activation that can be part of a normalization's loops.

    It must have a formula here and no `call` of its own, and must not be known to follow
    something else.
    """
    maker = keras_graphs.maker_of(layer)
    follows = maker is None or isinstance(maker, keras.layers.BatchNormalization)
    return follows and _formula_of(layer) is not None


def joined_call(layer: Any) -> Callable[..., Any]:
    """The `call` of a layer that may join the loops of the normalization before it."""
    formula = _formula_of(layer)
    assert formula is not None
    own_call = layer.call

    def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        normalised = getattr(inputs, _NORMALISED, None)
        # What was computed for `inputs` is left out of the step if nothing else reads it.
        return own_call(inputs, *args, **kwargs) if normalised is None else normalised.then(formula)

    return call


def _formula_of(layer: Any) -> ActivationFormula | None:
    kind = kind_of(layer, (keras.layers.Activation, keras.layers.ReLU))
    if kind is None or keras_private.overridden(layer, kind, "call") is not None:
        return None
    if kind is keras.layers.Activation:
        return formula_of(layer.activation)
    options = (layer.max_value, float(layer.negative_slope), float(layer.threshold))
    return {(None, 0.0, 0.0): RELU, (6.0, 0.0, 0.0): RELU6}.get(options)


def _data_format(axis: int, rank: int, channels_first: bool) -> str | None:
    """The op's name for where the channels are; None where it has none."""
    if rank >= 2 and axis in (-1, rank - 1):
        return "NHWC"
    if rank in ((4,) if channels_first else (3, 4, 5)) and axis in (1, 1 - rank):
        return "NCHW"
    return None


def _channels_last(x: tf.Tensor) -> tf.Tensor:
    """`x` with the channels last, for ops that take no NCHW; undoes `layout`'s transpose."""
    return tf.transpose(x, [0, *range(2, x.shape.rank), 1])


def _channels_first(y: tf.Tensor) -> tf.Tensor:
    rank = y.shape.rank
    return tf.transpose(y, [0, rank - 1, *range(1, rank - 1)])


def _as_4d(x: tf.Tensor) -> tf.Tensor:
    """The rows of channels as one image, as cuDNN limits the batch's size, not the image's."""
    return x if x.shape.rank == 4 else tf.reshape(x, [1, -1, 1, x.shape[-1]])


def _float32(variable: Any) -> tf.Tensor:
    return keras.ops.cast(variable, "float32")


def _scale_and_offset(layer: Any) -> tuple[tf.Tensor, tf.Tensor]:
    channels = layer.moving_mean.shape
    scale = _float32(layer.gamma) if layer.scale else tf.ones(channels)
    offset = _float32(layer.beta) if layer.center else tf.zeros(channels)
    return scale, offset


def _is_for_loops(x: tf.Tensor, least_numbers: float) -> bool:
    """Whether loops serve an input: XLA compiles them for each size that it meets."""
    known = x.dtype == tf.float32 and None not in x.shape[1:]
    return known and math.prod(x.shape[1:]) >= least_numbers


def _by_loops(layer: Any, x: tf.Tensor, training: bool) -> tf.Tensor:
    of_batch = training and layer.trainable
    if of_batch:
        mean, variance = moments(x)
        _move(layer.moving_mean, mean, layer.momentum)
        _move(layer.moving_variance, variance, layer.momentum)
    else:
        mean, variance = _float32(layer.moving_mean), _float32(layer.moving_variance)
    scale, offset = _scale_and_offset(layer)
    normalised = Normalised(x, scale, offset, mean, variance, layer.epsilon, of_batch)
    y = normalised.then()
    # For an activation layer that is given this very tensor.
    setattr(y, _NORMALISED, normalised)
    return y


def _by_op(layer: Any, x: tf.Tensor, training: bool, data_format: str) -> tf.Tensor:
    scale, offset = _scale_and_offset(layer)
    of_batch = training and layer.trainable
    normalise = _by_batch_statistics if of_batch else _by_moving_statistics
    y = normalise(layer, _as_4d(x), scale, offset, data_format)
    if x.shape.rank != 4:
        y = tf.reshape(y, tf.shape(x))
        y.set_shape(x.shape)
    return y


def _by_batch_statistics(
    layer: Any, x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, data_format: str
) -> tf.Tensor:
    settings = {"epsilon": layer.epsilon, "data_format": data_format, "is_training": True}
    none = tf.zeros([0])
    y, mean, variance, *reserved = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=scale, offset=offset, mean=none, variance=none, **settings
    )
    # The op divides the squares by n - 1 (by 1 where n is 1), Keras by n.
    size = tf.cast(tf.size(x, out_type=tf.int64), tf.float32)
    variance = variance * (1.0 - scale.shape[0] / size)
    _move(layer.moving_mean, mean, layer.momentum)
    _move(layer.moving_variance, variance, layer.momentum)

    def gradient(dy: tf.Tensor) -> Sequence[tf.Tensor]:
        """`dx = scale i (dy - mean(dy) - c i^2 mean(dy c))` with `c = x - mean`, `i = 1 / std`."""
        dx, dscale, doffset, *_ = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=dy,
            x=x,
            scale=scale,
            **{f"reserve_space_{i}": tensor for i, tensor in enumerate(reserved, 1)},
            **settings,
        )
        return dx, dscale, doffset

    def plain(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
        """`y` by Keras's ops, for derivatives of higher order."""
        turned = data_format == "NCHW"
        y = by_keras(_channels_last(x) if turned else x, scale, offset, layer.epsilon)
        return tf.cast(_channels_first(y) if turned else y, x.dtype)

    return with_gradient([x, scale, offset], lambda: y, gradient, plain)


def _move(variable: Any, value: tf.Tensor, momentum: float) -> None:
    variable.assign(_float32(variable) * momentum + value * (1.0 - momentum))


def _by_moving_statistics(
    layer: Any, x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, data_format: str
) -> tf.Tensor:
    mean, variance = _float32(layer.moving_mean), _float32(layer.moving_variance)

    def normalise() -> tf.Tensor:
        return tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=scale,
            offset=offset,
            mean=mean,
            variance=variance,
            epsilon=layer.epsilon,
            data_format=data_format,
            is_training=False,
        ).y

    if layer.trainable:
        return normalise()
    shape, axes = ((-1, 1, 1), (0, 2, 3)) if data_format == "NCHW" else ((-1,), (0, 1, 2))

    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """`dx = dy scale i`, `dscale = sum(dy (x - mean)) i`, `doffset = sum(dy)`.

        The op's gradient always makes those of scale and offset too. A frozen layer has no use
        for them, and in ops of their own they are pruned.
        """
        inverse = tf.math.rsqrt(variance + layer.epsilon)
        dy = tf.cast(dy, tf.float32)
        dx = dy * tf.reshape(scale * inverse, shape)
        centred = tf.cast(x, tf.float32) - tf.reshape(mean, shape)
        dscale = tf.reduce_sum(dy * centred, axes) * inverse
        return tf.cast(dx, x.dtype), dscale, tf.reduce_sum(dy, axes)

    return with_gradient([x, scale, offset], normalise, gradient)
