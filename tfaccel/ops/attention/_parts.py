"""Attention whose probabilities are made in one piece, and what it shares with blocks."""

import dataclasses
from typing import Any

import tensorflow as tf

from tfaccel.core.derivatives import with_gradient
from tfaccel.ops.attention._products import Products

# What a masked score becomes, as in keras.ops: a query that sees no key sees all alike.
_MASKED_SCORE = -0.7 * tf.float32.max


@dataclasses.dataclass(frozen=True)
class Visible:
    """Which keys queries see, from query `first` on."""

    mask: tf.Tensor | None
    is_causal: bool
    zero_masked: bool
    first: Any = 0

    def among(self, scores: tf.Tensor) -> tf.Tensor | None:
        """What is visible in `(batch, heads, queries, keys)`; None where everything is."""
        if not self.is_causal:
            return self.mask
        queries = self.first + tf.range(tf.shape(scores)[2])
        earlier = queries[:, None] >= tf.range(tf.shape(scores)[3])
        return earlier if self.mask is None else tf.logical_and(self.mask, earlier)


def probabilities(
    q: tf.Tensor, k: tf.Tensor, visible: Visible, products: Products
) -> tuple[tf.Tensor, tf.Tensor]:
    """`softmax(q k')`, and its part that depends on scores: `(batch, heads, queries, keys)` each.

    Both are in float32 or wider. They differ for a query that sees no key: its probabilities
    are constant, and no gradient reaches its scores.
    """
    scores = products.by_rows(q, k)
    scores = tf.cast(scores, wide(scores.dtype))
    seen = visible.among(scores)
    if seen is None:
        taken = tf.nn.softmax(scores)
        return taken, taken
    taken = tf.nn.softmax(tf.where(seen, scores, tf.cast(_MASKED_SCORE, scores.dtype)))
    if visible.mask is None:  # a causal query sees itself
        return taken, taken
    decided = tf.where(seen, taken, tf.zeros((), taken.dtype))
    return (decided if visible.zero_masked else taken), decided


def heads_second(x: tf.Tensor) -> tf.Tensor:
    return tf.transpose(x, [0, 2, 1, 3])


def along_channels(dy: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """`sum(dy * y)` over the channels: `(batch, heads, queries, 1)`."""
    dy, y = (tf.cast(x, wide(y.dtype)) for x in (dy, y))
    return heads_second(tf.reduce_sum(dy * y, -1, keepdims=True))


def wide(dtype: tf.DType) -> tf.DType:
    """The dtype of sums and softmax: float32 or wider, as in `keras.ops`."""
    return tf.float64 if dtype == tf.float64 else tf.float32


def whole(
    query: tf.Tensor,
    key: tf.Tensor,
    values: tf.Tensor,
    visible: Visible,
    dropped: tf.Tensor | None,
    products: Products,
) -> tf.Tensor:
    """`O = P V` with `P = softmax(Q K')`, which is kept for the gradient.

    With `dP = dO V'`: `dS = P * (dP - sum(dO * O))`, `dQ = dS K`, `dK = dS' Q`, `dV = P' dO`.
    Where probabilities were dropped, `P` in the products is what is left of them.
    """
    q, k, v = heads_second(query), heads_second(key), heads_second(values)
    taken, decided = probabilities(q, k, visible, products)
    weights = taken if dropped is None else taken * tf.cast(dropped, taken.dtype)
    weights = tf.cast(weights, values.dtype)

    def value() -> tf.Tensor:
        return tf.transpose(products.plain(weights, v), [0, 2, 1, 3])

    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
        along = along_channels(dy, y)
        dy = heads_second(dy)
        dp = tf.cast(products.by_rows(dy, v), along.dtype)
        dp = dp if dropped is None else dp * tf.cast(dropped, dp.dtype)
        ds = tf.cast(decided * (dp - along), query.dtype)
        dq = tf.transpose(products.plain(ds, k), [0, 2, 1, 3])
        dk, dv = products.of_keys(ds, q), products.of_keys(weights, dy)
        return dq, *(tf.transpose(x, products.order) for x in (dk, dv))

    y = with_gradient((query, key, values), value, gradient)
    return y
