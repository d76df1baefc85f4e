"""The weight gradient of a matrix product as its transpose, with the operands exchanged."""

import tensorflow as tf

from tfaccel.ops.kernels import _reference
from tfaccel.ops.kernels._geometry import rows
from tfaccel.ops.kernels._kernel import Kernel
from tfaccel.ops.kernels._spec import CallSpec


def _weight_gradient(spec: CallSpec, x: tf.Tensor, dy: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """`dw = (dy' x)'`."""
    if len(spec.w) > 2:
        turned = tf.linalg.matrix_transpose(tf.matmul(dy, x, transpose_a=True))
        return _reference.summed_to(turned, shape)
    return tf.transpose(tf.matmul(rows(dy), rows(x), transpose_a=True))


KERNELS = (
    Kernel(
        op="matmul",
        direction="weight_gradient",
        name="transposed",
        fn=_weight_gradient,
        summary="the transpose of `dy' x`, where the result is small beside the operands",
        source="Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, "
        "https://doi.org/10.1145/1356052.1356053",
    ),
)
