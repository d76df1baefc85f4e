"""The products that attention layers and their gradients are made of."""

import dataclasses
from typing import ClassVar

import tensorflow as tf

from tfaccel.ops.kernels import Chooser, input_gradient, matmul_spec, product, weight_gradient


class Products:
    """Products by TensorFlow's ops, of tensors `(batch, heads, rows, columns)`.

    Attributes:
        order: the permutation of `of_keys`'s results to `(batch, keys, heads, channels)`.
    """

    order: ClassVar[tuple[int, ...]] = (0, 3, 1, 2)

    def of_weights(self, x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        """`(batch, positions, channels)` times a matrix, as `(batch * positions, units)`."""
        return tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), w)

    def plain(self, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        """`a b`."""
        return tf.matmul(a, b)

    def by_rows(self, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        """`a b'`."""
        return tf.matmul(a, b, transpose_b=True)

    def of_keys(self, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        """`a' b`, where `a` is `(batch, heads, queries, keys)`; its dimensions as `order` has them.

        Here it is the transpose, `b' a`. Eigen takes half the time where the smaller factor is
        the one to be transposed: 7 ms for 13, 32 x 8 heads, 128 x 128 and 128 x 32, float32, on
        two cores of a Zen 3.
        """
        return tf.matmul(b, a, transpose_a=True)


@dataclasses.dataclass(frozen=True)
class ChosenProducts(Products):
    """Products by the kernels that `chooser` says for the layer called `layer`."""

    order: ClassVar[tuple[int, ...]] = (0, 2, 1, 3)

    layer: str
    chooser: Chooser

    def of_weights(self, x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        spec = matmul_spec(x.shape, w.shape, x.dtype.name)
        if not self.chooser.wanted(self.layer, [spec]):
            return super().of_weights(x, w)
        return tf.reshape(product(spec, x, w, self.chooser.choose), [-1, w.shape[-1]])

    def plain(self, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        spec = matmul_spec(a.shape, b.shape, a.dtype.name)
        if not self.chooser.wanted(self.layer, [spec]):
            return super().plain(a, b)
        return product(spec, a, b, self.chooser.choose)

    def by_rows(self, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        # As the gradient of the input of a product whose weights are `b`.
        made = (*a.shape[:-1], b.shape[-2])
        spec = matmul_spec(made, b.shape, a.dtype.name)
        if not self.chooser.wanted(self.layer, [spec]):
            return super().by_rows(a, b)
        shape = tf.concat([tf.shape(a)[:-1], tf.shape(b)[-2:-1]], 0)
        return input_gradient(spec, a, b, shape, self.chooser.choose)

    def of_keys(self, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        # As the gradient of the weights of a product whose input is `a`.
        made = (*a.shape[:-2], a.shape[-1], b.shape[-1])
        spec = matmul_spec(a.shape, made, a.dtype.name)
        if not self.chooser.wanted(self.layer, [spec]):
            return tf.linalg.matrix_transpose(super().of_keys(a, b))
        shape = tf.concat([tf.shape(a)[:-2], tf.shape(a)[-1:], tf.shape(b)[-1:]], 0)
        return weight_gradient(spec, a, b, shape, self.chooser.choose)
