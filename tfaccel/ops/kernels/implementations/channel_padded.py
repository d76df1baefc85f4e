"""A product with its channels filled up to what a GPU's Tensor Cores take."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from tfaccel.core.plan import Unsupported
from tfaccel.ops.kernels import _reference
from tfaccel.ops.kernels._kernel import Kernel
from tfaccel.ops.kernels._spec import CallSpec

# 16 bytes of 16-bit numbers:
# https://docs.nvidia.com/deeplearning/performance/dl-performance-convolutional/index.html
_MULTIPLE = 8


def _refusal(spec: CallSpec) -> Unsupported | None:
    if spec.device.kind != "GPU":
        return Unsupported("only a GPU's Tensor Cores want channels in multiples of 8")
    if spec.groups > 1:
        return Unsupported("it has groups")
    channels = spec.w[-2:]
    if all(n is not None and n % _MULTIPLE == 0 for n in channels):
        return Unsupported("its channels are multiples of 8")
    return None


def _filled(tensor: tf.Tensor, last: int) -> tf.Tensor:
    """Zeros after the last of the channels, in the last `last` dimensions."""
    sizes = tensor.shape[-last:]
    pads = [(0, 0)] * (len(tensor.shape) - last) + [(0, -n % _MULTIPLE) for n in sizes]
    # Not tf.pad: where both operands are paddings, TensorFlow's rewriting for oneDNN joins one of
    # them with the convolution, loses the other and ends the process.
    return tf.raw_ops.PadV2(input=tensor, paddings=pads, constant_values=tf.zeros((), tensor.dtype))


def _wide(spec: CallSpec) -> CallSpec:
    channels, filters = (n + -n % _MULTIPLE for n in spec.w[-2:] if n is not None)
    return dataclasses.replace(
        spec, x=(*spec.x[:-1], channels), w=(*spec.w[:-2], channels, filters)
    )


def _forward(spec: CallSpec, x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    reference = _reference.function(spec.op, "forward")
    return reference(_wide(spec), _filled(x, 1), _filled(w, 2))[..., : spec.w[-1]]


def _input_gradient(spec: CallSpec, dy: tf.Tensor, w: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    reference, wide = _reference.function(spec.op, "input_gradient"), _wide(spec)
    own = tf.concat([shape[:-1], wide.x[-1:]], 0)
    return reference(wide, _filled(dy, 1), _filled(w, 2), own)[..., : spec.x[-1]]


def _weight_gradient(spec: CallSpec, x: tf.Tensor, dy: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    reference, wide = _reference.function(spec.op, "weight_gradient"), _wide(spec)
    own = tf.concat([shape[:-2], wide.w[-2:]], 0)
    made = reference(wide, _filled(x, 1), _filled(dy, 1), own)
    return made[..., : spec.w[-2], : spec.w[-1]]


_FUNCTIONS: dict[str, Callable[..., tf.Tensor]] = {
    "forward": _forward,
    "input_gradient": _input_gradient,
    "weight_gradient": _weight_gradient,
}
KERNELS = tuple(
    Kernel(
        op=op,
        direction=direction,
        name="channel_padded",
        fn=fn,
        unsupported=_refusal,
        summary="channels filled up with zeros to multiples of 8",
        source="https://docs.nvidia.com/deeplearning/performance/"
        "dl-performance-convolutional/index.html#tensor-layouts",
    )
    for op in ("conv2d", "matmul")
    for direction, fn in _FUNCTIONS.items()
)
