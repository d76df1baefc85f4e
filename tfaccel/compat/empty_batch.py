"""Operations whose results for an empty batch are wrong, run on one sample of zeros instead.

oneDNN's convolutions give an empty batch the shape of their input, `(0, 8, 8, 3)` for
`(0, 8, 8, 5)`; the gradient of its max pooling ends the process; and TensorFlow's gradient
of depthwise filters leaves its result as it finds it. Where a batch may be empty, they get a
sample of zeros to work on, which is cut off from what they make. With samples there nothing
is copied: a padding of nothing and a slice of everything hand their input on.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf


class _Within(threading.local):
    """Whether the thread is in a function that has its sample already."""

    filled = False


_within = _Within()


def filled(function: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
    """`function(x, ...)`, for an empty batch too.

    Args:
        function: makes a tensor with as many samples as `x` has.
        x: the batch.
        *args: what else the function takes.
        **kwargs: as above.

    Returns:
        What the function makes. For an empty batch it has no samples, and the gradients of
        all that the function uses are zeros. Derivatives of any order are right.

    >>> empty = tf.zeros((0, 8, 8, 3))
    >>> filled(tf.nn.conv2d, empty, tf.ones((3, 3, 3, 5)), 1, "SAME").shape
    TensorShape([0, 8, 8, 5])
    """
    if _within.filled or not _may_be_empty(x):
        return function(x, *args, **kwargs)
    missing = tf.cast(tf.equal(tf.shape(x)[:1], 0), tf.int32)
    with _as_filled():
        made = function(_grown(x, missing), *args, **kwargs)
    kept = _cut(made, missing)
    kept.set_shape(x.shape[:1].concatenate(made.shape[1:]))
    return kept


def _may_be_empty(x: Any) -> bool:
    if not isinstance(x, tf.Tensor) or not x.shape.rank or not x.dtype.is_floating:
        return False
    return not x.shape[0]


@contextlib.contextmanager
def _as_filled() -> Iterator[None]:
    _within.filled = True
    try:
        yield
    finally:
        _within.filled = False


# The two are each other's gradients. `missing` is how many samples are added, 0 or 1, as a
# vector of one number.


def _grown(x: tf.Tensor, missing: tf.Tensor) -> tf.Tensor:
    """With samples of zeros before the first one."""

    @tf.custom_gradient
    def run(x: tf.Tensor) -> Any:
        before = [[1, 0], *([[0, 0]] * (x.shape.rank - 1))]
        # Not tf.pad: oneDNN's convolutions swallow a padding, and take none of samples.
        made = tf.raw_ops.PadV2(
            input=x, paddings=missing * before, constant_values=tf.zeros((), x.dtype)
        )
        return made, lambda dy: _cut(dy, missing)

    made = run(x)
    made.set_shape([None, *x.shape[1:]])
    return made


def _cut(y: tf.Tensor, missing: tf.Tensor) -> tf.Tensor:
    """Without the first samples."""
    first = [1, *([0] * (y.shape.rank - 1))]

    @tf.custom_gradient
    def run(y: tf.Tensor) -> Any:
        kept = tf.slice(y, missing * first, [-1] * y.shape.rank)
        return kept, lambda dx: _grown(dx, missing)

    return run(y)
