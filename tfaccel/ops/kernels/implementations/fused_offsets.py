"""A depthwise convolution as one elementwise loop over the window, fused by XLA."""

from typing import Any

import tensorflow as tf

from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.ops.kernels._geometry import (
    padded,
    paddings,
    seen_by,
    sizes,
    spatial_sizes,
    window_offsets,
)
from tfaccel.ops.kernels._kernel import kernels_of
from tfaccel.ops.kernels._spec import CallSpec


def _refusal(spec: CallSpec) -> Unsupported | None:
    if spec.w[-1] != 1:
        return Refusal.SHAPE(f"each channel has {spec.w[-1]} filters, not one")
    if spec.direction == "forward":
        return None
    if max(spec.dilation) > 1:
        return Refusal.SHAPE("it has dilation")
    if max(spec.strides) > 1 and spec.padding == "same" and None in spec.x[1:-1]:
        return Refusal.SIZES("its padding depends on sizes that are not known")
    return None


def _forward(spec: CallSpec, x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    """`y[p, c] = sum over o of x[stride p + o, c] w[o, c]`."""
    full = padded(spec, x)
    return tf.add_n(
        [
            seen_by(spec, full, offset) * w[(*offset, slice(None), 0)]
            for offset in window_offsets(spec)
        ]
    )


def _input_gradient(spec: CallSpec, dy: tf.Tensor, w: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Each pixel of the input gathers from the outputs whose windows see it.

    With a stride of s, pixels whose place is the same modulo s see the same window offsets, so
    there is one sum for each remainder, and the sums are woven together.
    """
    spatial = spatial_sizes(spec, shape)
    before = [pair[0] for pair in paddings(spec, spatial)]
    (height, width), (down, across) = spatial, spec.strides
    counts = -(-height // down), -(-width // across)
    margin = max(spec.kernel_size)
    room = [
        (margin, margin + _positive(count - n))
        for count, n in zip(counts, sizes(dy)[1:-1], strict=True)
    ]
    full = tf.pad(dy, [(0, 0), *room, (0, 0)])

    def one(row: int, column: int) -> tf.Tensor:
        total: Any = 0
        for i, j in window_offsets(spec):
            top, left = row + before[0] - i, column + before[1] - j
            if top % down or left % across:
                continue
            a, b = margin + top // down, margin + left // across
            total += full[:, a : a + counts[0], b : b + counts[1]] * w[i, j, :, 0]
        if isinstance(total, int):
            return tf.zeros_like(full[:, : counts[0], : counts[1]])
        return total

    woven = tf.stack(
        [tf.stack([one(r, c) for c in range(across)], axis=3) for r in range(down)], axis=2
    )
    woven = tf.reshape(woven, [shape[0], counts[0] * down, counts[1] * across, dy.shape[-1]])
    return woven[:, :height, :width]


def _positive(size: Any) -> Any:
    return max(size, 0) if isinstance(size, int) else tf.maximum(size, 0)


KERNELS = kernels_of(
    {"forward": _forward, "input_gradient": _input_gradient},
    ("depthwise_conv2d",),
    name="fused_offsets",
    unsupported=_refusal,
    summary="one elementwise loop over the window's positions, fused by XLA",
    source="https://openxla.org/xla/tf2xla/tutorials/jit_compile",
    jit_compile=True,
)
