"""Calls of layers, computed with the channels last."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.compat import keras_private
from tfaccel.compat.patching import instance_attributes
from tfaccel.passes.layout._elementwise import is_elementwise
from tfaccel.passes.layout._flow import Flow

CHANNELS_FIRST, CHANNELS_LAST = "channels_first", "channels_last"


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer, or of an operation of a graph, while a step is traced.

    `own` is its original `call`; `args` begin with the inputs.
    """

    layer: Any
    own: Callable[..., Any]
    flow: Flow
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on(self, inputs: Any, **attributes: Any) -> Any:
        """The layer's own call on other inputs, with other attributes meanwhile."""
        with instance_attributes((self.layer, *changed) for changed in attributes.items()):
            return self.own(inputs, *self.args[1:], **self.kwargs)

    @property
    def x(self) -> Any:
        """The first argument."""
        return self.args[0]

    @property
    def is_known(self) -> bool:
        """Whether a followed layer made the first argument."""
        return is_image(self.x) and self.flow.knows(self.x)


# Runs a call with the channels last; None where it has to run as it is written.
Follow = Callable[[Call], Any]


def is_image(x: Any) -> bool:
    """Whether `x` is a tensor with a batch, channels and at least one more dimension."""
    return isinstance(x, tf.Tensor) and x.shape.rank is not None and x.shape.rank >= 3


def spatial(call: Call) -> Any:
    """Layers with a `data_format`: convolutions, pooling, padding, and their like."""
    if call.layer.data_format != CHANNELS_FIRST or not is_image(call.x):
        return None
    function = getattr(call.layer, "activation", None)
    if function is None or is_elementwise(function):
        y = call.on(call.flow.last(call.x), data_format=CHANNELS_LAST)
        return call.flow.first(y) if y.shape.rank == call.x.shape.rank else y
    # Softmax or a user's function gets the channels where it was written for them.
    y = call.on(call.flow.last(call.x), data_format=CHANNELS_LAST, activation=None)
    return function(call.flow.first(y))


def along_channels(call: Call) -> Any:
    """Layers with an `axis`, where that is the channels."""
    if not call.is_known:
        return None
    axis, rank = call.layer.axis, call.x.shape.rank
    axes = list(axis) if isinstance(axis, list | tuple) else [axis]
    if [a % rank for a in axes] != [1]:
        return None
    changes: dict[str, Any] = {"axis": [rank - 1] if isinstance(axis, list | tuple) else rank - 1}
    if isinstance(call.layer, keras.layers.BatchNormalization):
        changes |= keras_private.reduction_axes(call.layer, list(range(rank - 1)))
    return call.flow.first(call.on(call.flow.last(call.x), **changes))


def elementwise(call: Call) -> Any:
    """Layers that treat every element alike."""
    return _one(call) if call.is_known else None


def activation(call: Call) -> Any:
    """`Activation`, if its function is known to be elementwise."""
    return elementwise(call) if is_elementwise(call.layer.activation) else None


def rescaling(call: Call) -> Any:
    """`Rescaling` by one number."""
    scalars = np.ndim(call.layer.scale) == np.ndim(call.layer.offset) == 0
    return elementwise(call) if scalars else None


def _one(call: Call, **attributes: Any) -> Any:
    y = call.flow.last(call.x)
    result = call.on(y, **attributes)
    return call.x if result is y else call.flow.first(result)


def prelu(call: Call) -> Any:
    """`PReLU`: alpha has the input's dimensions, or 1 where it is shared."""
    if not call.is_known:
        return None
    alpha = keras.ops.convert_to_tensor(call.layer.alpha)
    return _one(call, alpha=tf.transpose(alpha, [*range(1, alpha.shape.rank), 0]))


def dropout(call: Call) -> Any:
    """Dropout, with the very mask that is drawn where the channels come second."""
    if not call.is_known:
        return None
    y = call.flow.last(call.x)
    batch, *spatial_sizes, channels = tf.unstack(tf.shape(y), num=y.shape.rank)
    if getattr(call.layer, "data_format", None) == CHANNELS_FIRST:
        spatial_sizes = [1] * len(spatial_sizes)  # SpatialDropout draws once a channel
    ones = tf.ones([batch, channels, *spatial_sizes], y.dtype)
    mask = call.on(ones)
    return call.x if mask is ones else call.flow.first(y * call.flow.last(mask))


def merge(call: Call) -> Any:
    """Sums, products and their like of several tensors."""
    return call.flow.first(call.on(_together(call))) if _may_join(call) else None


def concatenate(call: Call) -> Any:
    """`Concatenate` along any axis."""
    if not _may_join(call):
        return None
    rank = call.x[0].shape.rank
    axis = call.layer.axis % rank
    moved = {0: 0, 1: rank - 1}.get(axis, axis - 1)
    return call.flow.first(call.on(_together(call), axis=moved))


def _together(call: Call) -> list[tf.Tensor]:
    return [call.flow.last(x) for x in call.x]


def _may_join(call: Call) -> bool:
    tensors = call.x
    return (
        isinstance(tensors, list | tuple)
        and all(map(is_image, tensors))
        and len({x.shape.rank for x in tensors}) == 1
        and any(map(call.flow.knows, tensors))
    )


def reshape(call: Call) -> Any:
    """`Reshape` that leaves the channels where they are."""
    target = tuple(call.layer.target_shape)
    if not call.is_known or len(target) < 2 or target[0] != call.x.shape[1]:
        return None
    y = call.flow.last(call.x)
    pixels, sizes = y.shape[1:-1].num_elements(), list(target[1:])
    if -1 in sizes and pixels:
        sizes[sizes.index(-1)] = pixels // -math.prod(sizes)
    return call.flow.first(tf.reshape(y, [tf.shape(y)[0], *sizes, target[0]]))


def flatten(call: Call) -> Any:
    """`Flatten`, which puts the channels last if it is told that they come first."""
    if not call.is_known or call.layer.data_format != CHANNELS_FIRST:
        return None
    y = call.flow.last(call.x)
    size = y.shape[1:].num_elements()
    return tf.reshape(y, [tf.shape(y)[0], -1 if size is None else size])


def binary(call: Call) -> Any:
    """`x + y` and its like in a Functional model's graph; either may be a number."""
    ranks = {x.shape.rank for x in filter(is_image, call.args)}
    known = any(map(call.flow.knows, call.args))
    if not known or len(ranks) > 1 or call.kwargs or not all(map(_joins, call.args)):
        return None
    a, b = (call.flow.last(x) if is_image(x) else x for x in call.args)
    return call.flow.first(call.own(a, b))


def _joins(x: Any) -> bool:
    return is_image(x) or isinstance(x, int | float)
