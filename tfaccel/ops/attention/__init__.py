"""Scaled dot-product attention with a gradient written by hand, whole or by blocks of queries.

With `P` the probabilities, `O = P V` and `dO` the gradient of `O`, that of the scores is
`P * (dO V' - sum(dO * O))` (Dao et al., 2022, appendix B.2): neither the scores nor the
gradient of a softmax have to be kept. Small `P` is made once and kept. Large `P` is made
by blocks of queries, in the gradient again, and is never whole.

Source: Vaswani et al., https://arxiv.org/abs/1706.03762; Dao et al., FlashAttention,
https://arxiv.org/abs/2205.14135
"""

import math
from typing import Any

import tensorflow as tf

from tfaccel.ops.attention import _blocks
from tfaccel.ops.attention._parts import Visible, whole
from tfaccel.ops.attention._products import ChosenProducts, Products

__all__ = ["ChosenProducts", "Products", "attend", "scaled_dot_product_attention"]

TENSORFLOW = Products()


def attend(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    mask: tf.Tensor | None = None,
    is_causal: bool = False,
    dropped: tf.Tensor | None = None,
    zero_masked: bool = False,
    products: Products = TENSORFLOW,
) -> tf.Tensor:
    """`softmax(query key') value`, with gradients of every order.

    Args:
        query: `(batch, queries, heads, channels)`, scaled already.
        key: `(batch, keys, heads, channels)`, in the query's dtype.
        value: `(batch, keys, heads, value channels)`, in the query's dtype.
        mask: booleans of four dimensions that broadcast to `(batch, heads, queries, keys)`;
            False hides a key from a query.
        is_causal: whether later keys are hidden from a query.
        dropped: dropout's factors of the probabilities, 0 or the inverse of the share kept,
            `(batch, heads, queries, keys)`. With them the probabilities are made in one piece.
        zero_masked: whether a query that sees no key gets zeros. By default it gets the mean
            of all values, as in `keras.ops.dot_product_attention`.
        products: computes the products of matrices; by default TensorFlow's ops do.

    Returns:
        `(batch, queries, heads, value channels)`, in the query's dtype.

    >>> x, value = tf.ones((1, 3, 2, 4)), tf.reshape(tf.range(24.0), (1, 3, 2, 4))
    >>> attend(x, x, value, is_causal=True)[0, :, 0, 0]
    <tf.Tensor: shape=(3,), dtype=float32, numpy=array([0., 4., 8.], dtype=float32)>
    """
    visible = Visible(mask, is_causal, zero_masked)
    sizes = (query.shape[1], query.shape[2], key.shape[1])
    small = None not in sizes and math.prod(sizes) <= _blocks.BLOCK_ELEMENTS
    if small or dropped is not None:
        return whole(query, key, value, visible, dropped, products)
    return _blocks.in_blocks(query, key, value, visible, products)


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    scale: float | None = None,
    is_causal: bool = False,
) -> tf.Tensor:
    """Attention as `keras.ops.dot_product_attention`, with the gradient of this module.

    Args:
        query: `(batch, queries, heads, channels)`.
        key: `(batch, keys, key heads, channels)`; the heads are a multiple of the key heads.
        value: `(batch, keys, key heads, value channels)`.
        mask: booleans that broadcast to `(batch, heads, queries, keys)`; False hides.
        scale: what the products of query and key are multiplied by; by default
            `channels ** -0.5`.
        is_causal: whether later keys are hidden from a query.

    Returns:
        `(batch, queries, heads, value channels)`, in the operands' dtype.

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names it.

    Source: https://keras.io/api/ops/nn/#dot_product_attention-function

    >>> x = tf.ones((1, 3, 2, 4))
    >>> tfaccel.ops.scaled_dot_product_attention(x, x, x, is_causal=True).shape
    TensorShape([1, 3, 2, 4])
    """
    query, key, value = _operands(query, key, value)
    if mask is not None:
        mask = tf.convert_to_tensor(mask)
        if mask.dtype != tf.bool or mask.shape.rank != 4:
            raise ValueError(
                "`mask` must hold booleans in four dimensions (batch, heads, queries, keys), any "
                f"of them 1. Received: {mask.dtype.name} of shape {mask.shape}"
            )
    if scale is None:
        scale = query.shape[-1] ** -0.5
    groups = query.shape[2] // key.shape[2]
    if groups > 1:
        key, value = (tf.repeat(x, groups, axis=2) for x in (key, value))
    return attend(query * tf.cast(scale, query.dtype), key, value, mask, bool(is_causal))


def _operands(query: Any, key: Any, value: Any) -> list[tf.Tensor]:
    named = {"query": query, "key": key, "value": value}
    tensors = {name: tf.convert_to_tensor(x) for name, x in named.items()}
    for name, x in tensors.items():
        if not x.dtype.is_floating or x.dtype != tensors["query"].dtype:
            found = ", ".join(other.dtype.name for other in tensors.values())
            raise TypeError(
                f"`query`, `key` and `value` must have one floating-point dtype. Received: {found}"
            )
        if x.shape.rank != 4 or None in x.shape[2:]:
            raise ValueError(
                f"`{name}` must have four dimensions (batch, positions, heads, channels), the last "
                f"two of them known. Received the shape {x.shape}"
            )
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    (*_, heads, channels), (*_, key_heads, key_channels) = shapes["query"], shapes["key"]
    if channels != key_channels or not key_heads or heads % key_heads:
        raise ValueError(
            "`key` must have the query's channels, and heads that divide the query's. "
            f"Received: query {shapes['query']}, key {shapes['key']}"
        )
    if shapes["value"][2] != key_heads:
        raise ValueError(
            f"`value` must have the key's heads. Received: key {shapes['key']}, "
            f"value {shapes['value']}"
        )
    return list(tensors.values())
