"""Attention by blocks of queries: their probabilities are made again in the gradient."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.core.derivatives import with_gradient
from tfaccel.ops.attention._parts import Visible, along_channels, heads_second, probabilities, wide
from tfaccel.ops.attention._products import Products

# Probabilities of one sample that are in memory at a time: 4 MiB in float32.
BLOCK_ELEMENTS = 2**20


def in_blocks(
    query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, visible: Visible, products: Products
) -> tf.Tensor:
    k, v = heads_second(key), heads_second(value)
    blocks = _Blocks.of(query, key)
    # What fills up the last block must be a query of the user's: zeros times a key that is not
    # finite would make gradients NaN that are finite without blocks.
    rows, seen = blocks.cut(heads_second(query), repeats_last=True), blocks.cut_visible(visible)

    def forward(i: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """The rows `P V` of block `i`, `(batch, heads, rows, value channels)`."""
        taken, _ = probabilities(rows(i), k, seen(i), products)
        return (products.plain(tf.cast(taken, v.dtype), v),)

    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
        along, dys = blocks.cut(along_channels(dy, y)), blocks.cut(heads_second(dy))

        def backward(i: tf.Tensor) -> tuple[tf.Tensor, ...]:
            """The rows of `dQ = dS K`, and what they add to `dK = dS' Q` and `dV = P' dO`."""
            q, dy = rows(i), dys(i)
            taken, decided = probabilities(q, k, seen(i), products)
            dp = products.by_rows(dy, v)
            ds = tf.cast(decided * (tf.cast(dp, decided.dtype) - along(i)), q.dtype)
            dv = products.of_keys(tf.cast(taken, dy.dtype), dy)
            return products.plain(ds, k), products.of_keys(ds, q), dv

        turned = [int(i) for i in np.argsort(products.order)]
        start = [tf.zeros_like(tf.transpose(x, turned), wide(x.dtype)) for x in (key, value)]
        dq, dk, dv = blocks.run(backward, query, start)
        dk, dv = (tf.transpose(x, products.order) for x in (dk, dv))
        return dq, tf.cast(dk, key.dtype), tf.cast(dv, value.dtype)

    y = with_gradient((query, key, value), lambda: blocks.run(forward, value, [])[0], gradient)
    return y


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Queries cut into blocks of rows, the last filled up; ints where they are known."""

    queries: Any
    rows: Any
    count: Any

    @classmethod
    def of(cls, query: tf.Tensor, key: tf.Tensor) -> "_Blocks":
        queries, in_row = _size(query, 1), _size(query, 2) * _size(key, 1)
        if isinstance(queries, int) and isinstance(in_row, int):
            count = max(1, -(-queries // max(1, BLOCK_ELEMENTS // max(1, in_row))))
            return cls(queries, -(-queries // count), count)
        most = tf.maximum(1, BLOCK_ELEMENTS // tf.maximum(1, in_row))
        count = tf.maximum(1, -(-queries // most))
        return cls(queries, -(-queries // count), count)

    def cut(self, x: tf.Tensor, *, repeats_last: bool = False) -> Callable[[tf.Tensor], tf.Tensor]:
        """A function from a block's index to that block of `(batch, heads, queries, ...)`.

        The last one is filled up with zeros, or with its last row.
        """
        missing = self.rows * self.count - self.queries
        if repeats_last and not (isinstance(missing, int) and missing == 0):
            x = tf.concat([x, tf.repeat(x[:, :, -1:], missing, axis=2)], 2)
        else:
            x = tf.pad(x, [(0, 0), (0, 0), (0, missing), (0, 0)])
        sizes = [_size(x, 0), _size(x, 1), self.count, self.rows, _size(x, 3)]
        x = tf.transpose(tf.reshape(x, sizes), [2, 0, 1, 3, 4])
        return lambda i: x[i]

    def cut_visible(self, visible: Visible) -> Callable[[tf.Tensor], Visible]:
        """A function from a block's index to the keys that its queries see."""
        mask = visible.mask
        if mask is None or mask.shape[2] == 1:
            return lambda i: dataclasses.replace(visible, first=i * self.rows)
        # Whether the mask has one row for all queries may be known only when it runs.
        batch, heads, _, keys = tf.unstack(tf.shape(mask))
        masks = self.cut(tf.broadcast_to(mask, [batch, heads, self.queries, keys]))
        return lambda i: dataclasses.replace(visible, first=i * self.rows, mask=masks(i))

    def run(
        self,
        step: Callable[[tf.Tensor], Sequence[tf.Tensor]],
        like: tf.Tensor,
        start: Sequence[tf.Tensor],
    ) -> list[tf.Tensor]:
        """All blocks, one after another: the rows, `(batch, queries, heads, ...)`, and the sums.

        `step` makes the rows of a block, with the heads second, and what is added to `start`;
        `like` has the dtype, heads and channels of all rows together.
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
            # Blocks that run at once would be in memory at once.
            parallel_iterations=1,
            # XLA makes room for this many where a gradient of the loop is wanted.
            maximum_iterations=self.count,
        )
        y = tf.transpose(made.stack(), [1, 0, 3, 2, 4])
        sizes = [_size(like, 0), self.rows * self.count, *(_size(like, i) for i in (2, 3))]
        return [tf.reshape(y, sizes)[:, : self.queries], *sums]


def _size(x: tf.Tensor, axis: int) -> Any:
    known = x.shape[axis]
    return tf.shape(x)[axis] if known is None else known
