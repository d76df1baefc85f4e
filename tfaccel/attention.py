"""Scaled dot-product attention with a gradient written by hand, whole or by blocks of queries.

With `P` the probabilities, `O = P V` and `dO` the gradient of `O`, that of the scores is
`P * (dO V' - sum(dO * O))` (Dao et al., 2022, appendix B.2): neither the scores nor the
gradient of a softmax have to be kept. Small `P` is made once and kept. Large `P` is made
by blocks of queries, in the gradient again, and is never whole.

Source: Vaswani et al., https://arxiv.org/abs/1706.03762; Dao et al., FlashAttention,
https://arxiv.org/abs/2205.14135
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

# Probabilities of one sample that are in memory at a time: 4 MiB in float32. What has no
# more of them is computed in one piece.
BLOCK_ELEMENTS = 2**20
# What a masked score becomes, as in keras.ops: a query that sees no key sees all alike.
_MASKED_SCORE = -0.7 * tf.float32.max


def attend(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    mask: tf.Tensor | None = None,
    is_causal: bool = False,
    dropped: tf.Tensor | None = None,
    zero_masked: bool = False,
) -> tf.Tensor:
    """`softmax(query key') value`, which can be differentiated as often as one likes.

    Args:
        query: `(batch, queries, heads, channels)`, scaled already.
        key: `(batch, keys, heads, channels)`, in the query's dtype.
        value: `(batch, keys, heads, value channels)`, in the query's dtype.
        mask: booleans of four dimensions that broadcast to `(batch, heads, queries, keys)`;
            False hides a key from a query.
        is_causal: whether later keys are hidden from a query.
        dropped: what the probabilities are multiplied by, `(batch, heads, queries, keys)`:
            dropout's zeros and inverse rates. As it is whole, they are made in one piece.
        zero_masked: whether a query that sees no key gets zeros. By default it gets the mean
            of all values, as in `keras.ops.dot_product_attention`.

    Returns:
        `(batch, queries, heads, value channels)`, in the query's dtype.

    >>> x, value = tf.ones((1, 3, 2, 4)), tf.reshape(tf.range(24.0), (1, 3, 2, 4))
    >>> attend(x, x, value, is_causal=True)[0, :, 0, 0]
    <tf.Tensor: shape=(3,), dtype=float32, numpy=array([0., 4., 8.], dtype=float32)>
    """
    visible = _Visible(mask, is_causal, zero_masked)
    sizes = (query.shape[1], query.shape[2], key.shape[1])
    small = None not in sizes and sizes[0] * sizes[1] * sizes[2] <= BLOCK_ELEMENTS
    if small or dropped is not None:
        return _whole(query, key, value, visible, dropped)
    return _in_blocks(query, key, value, visible)


@dataclasses.dataclass(frozen=True)
class _Visible:
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


def _probabilities(q: tf.Tensor, k: tf.Tensor, visible: _Visible) -> tuple[tf.Tensor, tf.Tensor]:
    """What is taken of each value, and the same where a score decides of it.

    Args:
        q, k: with the heads second.
        visible: which keys are seen.

    Returns:
        Two tensors in float32 or wider: they differ for a query that sees no key, whose
        scores have no say.
    """
    scores = tf.matmul(q, k, transpose_b=True)
    scores = tf.cast(scores, _wide(scores.dtype))
    seen = visible.among(scores)
    if seen is None:
        taken = tf.nn.softmax(scores)
        return taken, taken
    taken = tf.nn.softmax(tf.where(seen, scores, tf.cast(_MASKED_SCORE, scores.dtype)))
    if visible.mask is None:  # a causal query sees itself
        return taken, taken
    decided = tf.where(seen, taken, tf.zeros((), taken.dtype))
    return (decided if visible.zero_masked else taken), decided


def _whole(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    visible: _Visible,
    dropped: tf.Tensor | None,
) -> tf.Tensor:
    q, k, v = _heads_second(query), _heads_second(key), _heads_second(value)
    taken, decided = _probabilities(q, k, visible)
    weights = taken if dropped is None else taken * tf.cast(dropped, taken.dtype)
    weights = tf.cast(weights, value.dtype)

    # The gradient uses the tensors outside, not the arguments, so that a gradient of the
    # gradient finds them.
    @tf.custom_gradient
    def run(*_: tf.Tensor) -> Any:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            along = _along(dy, y)
            dy = _heads_second(dy)
            dp = tf.cast(tf.matmul(dy, v, transpose_b=True), along.dtype)
            dp = dp if dropped is None else dp * tf.cast(dropped, dp.dtype)
            ds = tf.cast(decided * (dp - along), query.dtype)
            dq = tf.transpose(tf.matmul(ds, k), [0, 2, 1, 3])
            return dq, _of_keys(ds, q), _of_keys(weights, dy)

        return tf.transpose(tf.matmul(weights, v), [0, 2, 1, 3]), gradient

    y = run(query, key, value)
    return y


def _in_blocks(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, visible: _Visible) -> tf.Tensor:
    k, v = _heads_second(key), _heads_second(value)
    blocks = _Blocks.of(query, key)
    rows, seen = blocks.cut(_heads_second(query)), blocks.cut_visible(visible)

    def forward(i: tf.Tensor) -> tuple[tf.Tensor, ...]:
        taken, _ = _probabilities(rows(i), k, seen(i))
        return (tf.matmul(tf.cast(taken, v.dtype), v),)

    @tf.custom_gradient
    def run(*_: tf.Tensor) -> Any:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            along, dys = blocks.cut(_along(dy, y)), blocks.cut(_heads_second(dy))

            def backward(i: tf.Tensor) -> tuple[tf.Tensor, ...]:
                q, dy = rows(i), dys(i)
                taken, decided = _probabilities(q, k, seen(i))
                dp = tf.matmul(dy, v, transpose_b=True)
                ds = tf.cast(decided * (tf.cast(dp, decided.dtype) - along(i)), q.dtype)
                dv = tf.matmul(dy, tf.cast(taken, dy.dtype), transpose_a=True)
                return tf.matmul(ds, k), tf.matmul(q, ds, transpose_a=True), dv

            start = [tf.zeros_like(tf.linalg.matrix_transpose(x), _wide(x.dtype)) for x in (k, v)]
            dq, dk, dv = blocks.run(backward, query, start)
            dk, dv = (tf.transpose(x, [0, 3, 1, 2]) for x in (dk, dv))
            return dq, tf.cast(dk, key.dtype), tf.cast(dv, value.dtype)

        return blocks.run(forward, value, [])[0], gradient

    y = run(query, key, value)
    return y


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Queries that are cut into blocks of rows, the last of them filled up with zeros.

    Attributes:
        queries, rows, count: ints where they are known while tracing.
    """

    queries: Any
    rows: Any
    count: Any

    @classmethod
    def of(cls, query: tf.Tensor, key: tf.Tensor) -> "_Blocks":
        queries, in_row = _size(query, 1), _size(query, 2) * _size(key, 1)
        if isinstance(queries, int) and isinstance(in_row, int):
            count = max(1, -(-queries // max(1, BLOCK_ELEMENTS // max(1, in_row))))
            return cls(queries, max(1, -(-queries // count)), count)
        most = tf.maximum(1, BLOCK_ELEMENTS // tf.maximum(1, in_row))
        count = tf.maximum(1, -(-queries // most))
        return cls(queries, tf.maximum(1, -(-queries // count)), count)

    def cut(self, x: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
        """Gives block after block of `(batch, heads, queries, ...)`."""
        x = tf.pad(x, [(0, 0), (0, 0), (0, self.rows * self.count - self.queries), (0, 0)])
        sizes = [_size(x, 0), _size(x, 1), self.count, self.rows, _size(x, 3)]
        x = tf.transpose(tf.reshape(x, sizes), [2, 0, 1, 3, 4])
        return lambda i: x[i]

    def cut_visible(self, visible: _Visible) -> Callable[[tf.Tensor], _Visible]:
        """Says which keys the queries of a block see."""
        mask = visible.mask
        if mask is None or mask.shape[2] == 1:
            return lambda i: dataclasses.replace(visible, first=i * self.rows)
        # Its one row for all queries may be seen only when it runs.
        batch, heads, _, keys = tf.unstack(tf.shape(mask))
        masks = self.cut(tf.broadcast_to(mask, [batch, heads, self.queries, keys]))
        return lambda i: dataclasses.replace(visible, first=i * self.rows, mask=masks(i))

    def run(
        self,
        step: Callable[[tf.Tensor], Sequence[tf.Tensor]],
        like: tf.Tensor,
        start: Sequence[tf.Tensor],
    ) -> list[tf.Tensor]:
        """All blocks, one after another.

        Args:
            step: makes the rows of a block, with the heads second, and what is to be summed.
            like: has the dtype, heads and channels of all rows together.
            start: what the sums begin with.

        Returns:
            The rows, `(batch, queries, heads, ...)`, and the sums.
        """

        def body(i: tf.Tensor, made: tf.TensorArray, *sums: tf.Tensor) -> tuple[Any, ...]:
            rows, *more = step(i)
            added = [x + tf.cast(new, x.dtype) for x, new in zip(sums, more, strict=True)]
            for x, before in zip(added, sums, strict=True):
                x.set_shape(before.shape)
            return i + 1, made.write(i, rows), *added

        _, made, *sums = tf.while_loop(
            lambda i, *_: i < self.count,
            body,
            (tf.constant(0), tf.TensorArray(like.dtype, self.count), *start),
            # Several at a time would be in memory at a time.
            parallel_iterations=1,
            # XLA makes room for this many where a gradient of the loop is wanted.
            maximum_iterations=self.count,
        )
        y = tf.transpose(made.stack(), [1, 0, 3, 2, 4])
        sizes = [_size(like, 0), self.rows * self.count, *(_size(like, i) for i in (2, 3))]
        return [tf.reshape(y, sizes)[:, : self.queries], *sums]


def _heads_second(x: tf.Tensor) -> tf.Tensor:
    return tf.transpose(x, [0, 2, 1, 3])


def _along(dy: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """`sum(dy * y)` over the channels: `(batch, heads, queries, 1)`."""
    dy, y = (tf.cast(x, _wide(y.dtype)) for x in (dy, y))
    return _heads_second(tf.reduce_sum(dy * y, -1, keepdims=True))


def _of_keys(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """`left' right` as `(batch, keys, heads, channels)`.

    Eigen takes half the time where the small factor is the one to be turned: 7 ms for 13,
    32 x 8 heads, 128 x 128 by 128 x 32, float32, on two cores of a Zen 3.
    """
    return tf.transpose(tf.matmul(right, left, transpose_a=True), [0, 3, 1, 2])


def _size(x: tf.Tensor, axis: int) -> Any:
    known = x.shape[axis]
    return tf.shape(x)[axis] if known is None else known


def _wide(dtype: tf.DType) -> tf.DType:
    """Sums and softmax are computed in float32 or wider, as in `keras.ops`."""
    return tf.float64 if dtype == tf.float64 else tf.float32
