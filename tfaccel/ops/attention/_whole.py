"""Attention whose probabilities are made in one piece, and kept for the gradient."""

from typing import Any

import tensorflow as tf

from tfaccel.ops.attention._parts import Visible, along_channels, heads_second, probabilities
from tfaccel.ops.attention._products import Products


def whole(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    visible: Visible,
    dropped: tf.Tensor | None,
    products: Products,
) -> tf.Tensor:
    q, k, v = heads_second(query), heads_second(key), heads_second(value)
    taken, decided = probabilities(q, k, visible, products)
    weights = taken if dropped is None else taken * tf.cast(dropped, taken.dtype)
    weights = tf.cast(weights, value.dtype)

    # The gradient uses the tensors outside, not the arguments, so that a gradient of the
    # gradient finds them.
    @tf.custom_gradient
    def run(*_: tf.Tensor) -> Any:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            along = along_channels(dy, y)
            dy = heads_second(dy)
            dp = tf.cast(products.by_rows(dy, v), along.dtype)
            dp = dp if dropped is None else dp * tf.cast(dropped, dp.dtype)
            ds = tf.cast(decided * (dp - along), query.dtype)
            dq = tf.transpose(products.plain(ds, k), [0, 2, 1, 3])
            dk, dv = products.of_keys(ds, q), products.of_keys(weights, dy)
            return dq, *(tf.transpose(x, products.order) for x in (dk, dv))

        return tf.transpose(products.plain(weights, v), [0, 2, 1, 3]), gradient

    y = run(query, key, value)
    return y
