"""A strided convolution of few channels as one of more channels without strides."""

import dataclasses

import tensorflow as tf

from tfaccel.kernels import _native
from tfaccel.kernels._geometry import fitted, outputs, padded, sizes
from tfaccel.kernels._kernel import Kernel
from tfaccel.kernels._spec import CONVOLUTIONS, CallSpec
from tfaccel.plan import Refusal

# With as many channels as this the convolution's own kernels have enough to multiply.
_MOST_CHANNELS = 16


def _refusal(spec: CallSpec) -> Refusal | None:
    if set(spec.strides) == {1}:
        return Refusal("it has no strides")
    if set(spec.dilation) != {1} or spec.groups > 1:
        return Refusal("it has dilation or groups")
    if (spec.x[-1] or 0) > _MOST_CHANNELS:
        return Refusal(f"it has {spec.x[-1]} channels, more than {_MOST_CHANNELS}")
    return None


def _folded(tensor: tf.Tensor, lead: int, blocks: tuple[int, ...]) -> tf.Tensor:
    """Blocks of pixels become channels; sizes are multiples of `blocks`.

    Args:
        tensor: spatial dimensions stand between the first `lead` and the channels.
        lead: 1 for a batch of images, 0 for filters.
        blocks: the block's size, by spatial dimension.
    """
    rank = len(blocks)
    shape = sizes(tensor)
    spatial, tail = shape[lead : lead + rank], shape[lead + rank :]
    split = [part for n, s in zip(spatial, blocks, strict=True) for part in (n // s, s)]
    apart = tf.reshape(tensor, [*shape[:lead], *split, *tail])
    outer = [lead + 2 * i for i in range(rank)]
    rest = range(lead + 2 * rank, lead + 2 * rank + len(tail))
    apart = tf.transpose(apart, [*range(lead), *outer, *(i + 1 for i in outer), *rest])
    counts = [n // s for n, s in zip(spatial, blocks, strict=True)]
    depth = tail[0]
    for s in blocks:
        depth *= s
    return tf.reshape(apart, [*shape[:lead], *counts, depth, *tail[1:]])


def _inside(spec: CallSpec, x: tf.Tensor) -> tuple[CallSpec, tf.Tensor]:
    """The convolution without strides, and the input that it takes."""
    full = padded(spec, x)
    windows = [-(-k // s) for k, s in zip(spec.kernel_size, spec.strides, strict=True)]
    counts = outputs(spec, sizes(full)[1:-1])
    wanted = [(n + k - 1) * s for n, k, s in zip(counts, windows, spec.strides, strict=True)]
    deep = _folded(fitted(full, wanted), 1, spec.strides)
    ones = (1,) * len(windows)
    inner = dataclasses.replace(
        spec,
        x=tuple(deep.shape),
        w=(*windows, deep.shape[-1], spec.w[-1]),
        strides=ones,
        dilation=ones,
        padding="valid",
    )
    return inner, deep


def _forward(spec: CallSpec, x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    inner, deep = _inside(spec, x)
    wide = [(0, -k % s) for k, s in zip(spec.kernel_size, spec.strides, strict=True)]
    filters = _folded(tf.pad(w, [*wide, (0, 0), (0, 0)]), 0, spec.strides)
    return _native.convolution(inner, deep, filters)


def _weight_gradient(spec: CallSpec, x: tf.Tensor, dy: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    inner, deep = _inside(spec, x)
    gradient = _native.function(spec.op, "weight_gradient")
    made = gradient(inner, deep, dy, tf.constant(inner.w, tf.int32))
    rank, channels = len(spec.strides), spec.w[-2]
    apart = tf.reshape(made, [*inner.kernel_size, *spec.strides, channels, spec.w[-1]])
    order = [part for i in range(rank) for part in (i, rank + i)]
    apart = tf.transpose(apart, [*order, 2 * rank, 2 * rank + 1])
    wide = [k * s for k, s in zip(inner.kernel_size, spec.strides, strict=True)]
    apart = tf.reshape(apart, [*wide, channels, spec.w[-1]])
    return apart[tuple(slice(None, k) for k in spec.kernel_size)]


KERNELS = tuple(
    Kernel(
        op=op,
        direction=direction,
        name="space_to_depth",
        fn=fn,
        refusal=_refusal,
        summary="blocks of pixels become channels, so that no stride is left",
        source="Ying et al., Image Classification at Supercomputer Scale, "
        "https://arxiv.org/abs/1811.06992, section 3",
    )
    for op in CONVOLUTIONS
    for direction, fn in (("forward", _forward), ("weight_gradient", _weight_gradient))
)
