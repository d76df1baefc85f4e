"""What each window offset of a convolution sees: padding, shifted views, and their way back.

Tensors have their channels last.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfaccel.ops.kernels._spec import CallSpec

Size = Any  # an int, or an int32 scalar where the size is not known while tracing
Offset = tuple[int, ...]


def sizes(tensor: tf.Tensor) -> list[Size]:
    """A tensor's shape, as numbers where they are known."""
    dynamic = tf.shape(tensor)
    return [n if n is not None else dynamic[i] for i, n in enumerate(tensor.shape)]


def spatial_sizes(spec: CallSpec, shape: tf.Tensor) -> list[Size]:
    """The input's spatial sizes; those that are not known while tracing from its `shape`."""
    return [n if n is not None else shape[i + 1] for i, n in enumerate(spec.x[1:-1])]


def window_offsets(spec: CallSpec) -> Iterator[Offset]:
    """The positions of the window, in the order in which the weights have them."""
    return itertools.product(*map(range, spec.kernel_size))


def paddings(spec: CallSpec, spatial: Sequence[Size]) -> list[tuple[Size, Size]]:
    """How much is padded before and after, by spatial dimension.

    Source: https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2
    """
    if spec.padding == "valid":
        return [(0, 0)] * len(spatial)
    pairs = []
    for n, k, s, d in zip(spatial, spec.kernel_size, spec.strides, spec.dilation, strict=True):
        # Without a stride it is the same for every size, known or not.
        reach = d * (k - 1) if s == 1 else (-(-n // s) - 1) * s + d * (k - 1) + 1 - n
        total = max(reach, 0) if isinstance(reach, int) else tf.maximum(reach, 0)
        pairs.append((total // 2, total - total // 2))
    return pairs


def padded(spec: CallSpec, x: tf.Tensor) -> tf.Tensor:
    """The input with the padding that its convolution implies."""
    pairs = paddings(spec, sizes(x)[1:-1])
    if all(isinstance(n, int) and n == 0 for pair in pairs for n in pair):
        return x
    return tf.pad(x, [(0, 0), *pairs, (0, 0)])


def outputs(spec: CallSpec, full: Sequence[Size]) -> list[Size]:
    """The output's spatial sizes, from those of the padded input."""
    pairs = zip(full, spec.kernel_size, spec.strides, spec.dilation, strict=True)
    return [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in pairs]


def seen_by(spec: CallSpec, full: tf.Tensor, offset: Offset) -> tf.Tensor:
    """What a window offset sees of the padded input: one pixel for each output."""
    counts = outputs(spec, sizes(full)[1:-1])
    cuts = [
        slice(i * d, i * d + (n - 1) * s + 1, s)
        for i, n, s, d in zip(offset, counts, spec.strides, spec.dilation, strict=True)
    ]
    return full[(slice(None), *cuts)]


def spread(spec: CallSpec, y: tf.Tensor) -> tf.Tensor:
    """A tensor of outputs with `stride - 1` zeros between its pixels and after the last."""
    if set(spec.strides) == {1}:
        return y
    batch, *spatial, channels = sizes(y)
    split = [part for n in spatial for part in (n, 1)]
    gaps = [pair for s in spec.strides for pair in ((0, 0), (0, s - 1))]
    apart = tf.pad(tf.reshape(y, [batch, *split, channels]), [(0, 0), *gaps, (0, 0)])
    wide = [n * s for n, s in zip(spatial, spec.strides, strict=True)]
    return tf.reshape(apart, [batch, *wide, channels])


def fitted(x: tf.Tensor, spatial: Sequence[Size]) -> tf.Tensor:
    """Cuts off, or fills up with zeros, after the last pixel, to the sizes given."""
    cut = x[(slice(None), *(slice(None, n) for n in spatial))]
    missing = [(0, n - m) for n, m in zip(spatial, sizes(cut)[1:-1], strict=True)]
    if all(isinstance(n, int) and n == 0 for _, n in missing):
        return cut
    return tf.pad(cut, [(0, 0), *missing, (0, 0)])


def folded(spec: CallSpec, parts: Sequence[tf.Tensor], shape: tf.Tensor) -> tf.Tensor:
    """The sum of what each window offset gives back to the input, the reverse of `seen_by`.

    `parts` has a tensor of the output's size for each of `window_offsets`; `shape` is the input's.
    """
    spatial = spatial_sizes(spec, shape)
    before = [pair[0] for pair in paddings(spec, spatial)]
    total = None
    for offset, part in zip(window_offsets(spec), parts, strict=True):
        offsets = [i * d for i, d in zip(offset, spec.dilation, strict=True)]
        placed = tf.pad(spread(spec, part), [(0, 0), *((o, 0) for o in offsets), (0, 0)])
        ends = [n + p for n, p in zip(spatial, before, strict=True)]
        placed = fitted(placed, ends)
        total = placed if total is None else total + placed
    assert total is not None
    return total[(slice(None), *(slice(p, None) for p in before))]


def rows(x: tf.Tensor) -> tf.Tensor:
    """A matrix with one row of channels for each pixel."""
    return x if x.shape.rank == 2 else tf.reshape(x, [-1, x.shape[-1]])
