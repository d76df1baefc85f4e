"""A grouped convolution as one convolution for each group."""

import dataclasses

import tensorflow as tf

from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.ops.kernels import _reference
from tfaccel.ops.kernels._kernel import kernels_of
from tfaccel.ops.kernels._spec import DIRECTIONS, CallSpec

# More of them are a graph too large for what it wins.
_MOST_GROUPS = 32


def _refusal(spec: CallSpec) -> Unsupported | None:
    if spec.groups == 1:
        return Refusal.NO_USE("it has one group")
    if spec.groups > _MOST_GROUPS:
        return Refusal.SHAPE(f"it has {spec.groups} groups, more than {_MOST_GROUPS}")
    return None


def _one_group(spec: CallSpec) -> CallSpec:
    channels, filters = spec.w[-2], (spec.w[-1] or 0) // spec.groups
    return dataclasses.replace(
        spec, x=(*spec.x[:-1], channels), w=(*spec.w[:-1], filters), groups=1
    )


def _by_group(spec: CallSpec, a: tf.Tensor, b: tf.Tensor, *shape: tf.Tensor) -> tf.Tensor:
    """Any direction: in each operand, and in the result, the last dimension is cut by groups."""
    one = _one_group(spec)
    of_one = [tf.concat([whole[:-1], one.result[-1:]], 0) for whole in shape]
    pairs = zip(tf.split(a, spec.groups, -1), tf.split(b, spec.groups, -1), strict=True)
    return tf.concat([_reference.call(one, *pair, *of_one) for pair in pairs], -1)


KERNELS = kernels_of(
    dict.fromkeys(DIRECTIONS, _by_group),
    name="split_groups",
    unsupported=_refusal,
    summary="a convolution of its own for each group",
    source="Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural "
    "Networks (2012), section 3.5",
)
