"""A grouped convolution as one convolution for each group."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from tfaccel.core.plan import Unsupported
from tfaccel.ops.kernels import _reference
from tfaccel.ops.kernels._kernel import Kernel
from tfaccel.ops.kernels._spec import CONVOLUTIONS, CallSpec

# More of them are a graph too large for what it wins.
_MOST_GROUPS = 32


def _refusal(spec: CallSpec) -> Unsupported | None:
    if spec.groups == 1:
        return Unsupported("it has one group")
    if spec.groups > _MOST_GROUPS:
        return Unsupported(f"it has {spec.groups} groups, more than {_MOST_GROUPS}")
    return None


def _one_group(spec: CallSpec) -> CallSpec:
    channels, filters = spec.w[-2], (spec.w[-1] or 0) // spec.groups
    return dataclasses.replace(
        spec, x=(*spec.x[:-1], channels), w=(*spec.w[:-1], filters), groups=1
    )


def _forward(spec: CallSpec, x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    one = _one_group(spec)
    pairs = zip(tf.split(x, spec.groups, -1), tf.split(w, spec.groups, -1), strict=True)
    return tf.concat([_reference.convolution(one, a, b) for a, b in pairs], -1)


def _input_gradient(spec: CallSpec, dy: tf.Tensor, w: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    one = _one_group(spec)
    own = tf.concat([shape[:-1], one.x[-1:]], 0)
    gradient = _reference.function(spec.op, "input_gradient")
    pairs = zip(tf.split(dy, spec.groups, -1), tf.split(w, spec.groups, -1), strict=True)
    return tf.concat([gradient(one, a, b, own) for a, b in pairs], -1)


def _weight_gradient(spec: CallSpec, x: tf.Tensor, dy: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    one = _one_group(spec)
    gradient = _reference.function(spec.op, "weight_gradient")
    pairs = zip(tf.split(x, spec.groups, -1), tf.split(dy, spec.groups, -1), strict=True)
    return tf.concat([gradient(one, a, b, tf.constant(one.w)) for a, b in pairs], -1)


_FUNCTIONS: dict[str, Callable[..., tf.Tensor]] = {
    "forward": _forward,
    "input_gradient": _input_gradient,
    "weight_gradient": _weight_gradient,
}
KERNELS = tuple(
    Kernel(
        op=op,
        direction=direction,
        name="split_groups",
        fn=fn,
        unsupported=_refusal,
        summary="a convolution of its own for each group",
        source="Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural "
        "Networks (2012), section 3.5",
    )
    for op in CONVOLUTIONS
    for direction, fn in _FUNCTIONS.items()
)
