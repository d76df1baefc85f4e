"""Operations whose results for an empty batch are wrong, run on one sample of zeros instead.

oneDNN's convolutions give an empty batch the shape of their input, `(0, 8, 8, 3)` for
`(0, 8, 8, 5)`; the gradient of its max pooling ends the process; and TensorFlow's gradient
of depthwise filters leaves its result uninitialised. Where a batch may be empty, these operations
get one sample of zeros, which is cut off from their result. A batch with samples is not copied:
padding it with nothing and slicing all of it hands it on.
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
        function: makes a tensor with as many samples and as many dimensions as `x` has.
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
    # How many samples to add, as a shape: 1 or 0, and nothing along other dimensions. One
    # operation compares all sizes, as none of the others is -1.
    added = tf.cast(tf.equal(tf.shape(x), [0, *([-1] * (x.shape.rank - 1))]), tf.int32)
    paddings = tf.stack([added, [0] * x.shape.rank], axis=1)
    with _as_filled():
        made = function(_grown(x, added, paddings), *args, **kwargs)
    kept = _cut(made, added, paddings)
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


# The two are each other's gradients. Both are told how many samples are added, and the paddings
# that add them, which every use shares.


def _grown(x: tf.Tensor, added: tf.Tensor, paddings: tf.Tensor) -> tf.Tensor:
    """With samples of zeros before the first one."""

    @tf.custom_gradient
    def run(x: tf.Tensor) -> Any:
        # Not tf.pad: oneDNN's convolutions swallow a padding, and take none of samples.
        nothing = tf.zeros((), x.dtype)
        made = tf.raw_ops.PadV2(input=x, paddings=paddings, constant_values=nothing)
        return made, lambda dy: _cut(dy, added, paddings)

    made = run(x)
    made.set_shape([None, *x.shape[1:]])
    return made


def _cut(y: tf.Tensor, added: tf.Tensor, paddings: tf.Tensor) -> tf.Tensor:
    """Without the first samples."""

    @tf.custom_gradient
    def run(y: tf.Tensor) -> Any:
        kept = tf.slice(y, added, [-1] * y.shape.rank)
        return kept, lambda dx: _grown(dx, added, paddings)

    kept = run(y)
    kept.set_shape([None, *y.shape[1:]])
    return kept
