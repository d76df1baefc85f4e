"""What attention in one piece and attention by blocks share."""

import dataclasses
from typing import Any

import tensorflow as tf

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
    """What is taken of each value, and the same where a score decides of it.

    Args:
        q, k: with the heads second.
        visible: which keys are seen.
        products: compute the products.

    Returns:
        Two tensors in float32 or wider: they differ for a query that sees no key, whose
        scores have no say.
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
    """Sums and softmax are computed in float32 or wider, as in `keras.ops`."""
    return tf.float64 if dtype == tf.float64 else tf.float32
