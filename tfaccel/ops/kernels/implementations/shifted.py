"""A convolution as a sum of matrix products, one for each position of the window."""

import tensorflow as tf

from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.ops.kernels._geometry import folded, padded, rows, seen_by, sizes, window_offsets
from tfaccel.ops.kernels._kernel import kernels_of
from tfaccel.ops.kernels._spec import CallSpec


def _refusal(spec: CallSpec) -> Unsupported | None:
    if set(spec.kernel_size) == {1}:
        return Refusal.NO_USE("its window is one pixel: matmul_1x1 is the same product")
    return Refusal.SHAPE("it has groups") if spec.groups > 1 else None


def _forward(spec: CallSpec, x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    """`Y = sum over o of X_o w_o`: `X_o` is what the window's position `o` sees."""
    full = padded(spec, x)
    seen = {offset: seen_by(spec, full, offset) for offset in window_offsets(spec)}
    total = tf.add_n([tf.matmul(rows(part), w[offset]) for offset, part in seen.items()])
    one = next(iter(seen.values()))
    return tf.reshape(total, [*sizes(one)[:-1], w.shape[-1]])


def _input_gradient(spec: CallSpec, dy: tf.Tensor, w: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """`dX_o = dY w_o'`, each summed where the position `o` sees the input."""
    outer = sizes(dy)[:-1]
    products = [tf.matmul(rows(dy), w[offset], transpose_b=True) for offset in window_offsets(spec)]
    return folded(spec, [tf.reshape(p, [*outer, w.shape[-2]]) for p in products], shape)


def _weight_gradient(spec: CallSpec, x: tf.Tensor, dy: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """`dw_o = X_o' dY`."""
    full, grown = padded(spec, x), rows(dy)
    products = [
        tf.matmul(rows(seen_by(spec, full, offset)), grown, transpose_a=True)
        for offset in window_offsets(spec)
    ]
    return tf.reshape(tf.stack(products), shape)


KERNELS = kernels_of(
    {"forward": _forward, "input_gradient": _input_gradient, "weight_gradient": _weight_gradient},
    name="shifted",
    unsupported=_refusal,
    summary="a matrix product for each position of the window, on shifted inputs",
    source="Anderson et al., Low-memory GEMM-based convolution algorithms, "
    "https://arxiv.org/abs/1709.03395 (kn2row)",
)
