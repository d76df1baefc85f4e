"""The input gradient of a convolution as a forward convolution with flipped filters."""

import dataclasses

import tensorflow as tf

from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.ops.kernels import _reference
from tfaccel.ops.kernels._geometry import paddings, spatial_sizes
from tfaccel.ops.kernels._kernel import kernels_of
from tfaccel.ops.kernels._spec import CallSpec


def _refusal(spec: CallSpec) -> Unsupported | None:
    if set(spec.strides) != {1}:
        return Refusal.SHAPE("its strides would put zeros between the pixels")
    if set(spec.dilation) != {1}:
        return Refusal.SHAPE("it has dilation")
    if set(spec.kernel_size) == {1}:
        return Refusal.NO_USE("its window is one pixel: matmul_1x1 is the same product")
    return Refusal.SHAPE("it has groups") if spec.groups > 1 else None


def _input_gradient(spec: CallSpec, dy: tf.Tensor, w: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """`dx[p, c] = sum over o, f of pad(dy)[p + o, f] w[k - 1 - o, c, f]` over offsets `o`."""
    spatial = spatial_sizes(spec, shape)
    rank = len(spatial)
    around = [
        (k - 1 - before, k - 1 - after)
        for k, (before, after) in zip(spec.kernel_size, paddings(spec, spatial), strict=True)
    ]
    turned = tf.transpose(tf.reverse(w, list(range(rank))), [*range(rank), rank + 1, rank])
    whole = tf.pad(dy, [(0, 0), *around, (0, 0)])
    return _reference.convolution(dataclasses.replace(spec, padding="valid"), whole, turned)


KERNELS = kernels_of(
    {"input_gradient": _input_gradient},
    name="flipped",
    unsupported=_refusal,
    summary="the forward convolution of the output's gradient with flipped filters",
    source="Dumoulin and Visin, A guide to convolution arithmetic, "
    "https://arxiv.org/abs/1603.07285, section 4",
)
