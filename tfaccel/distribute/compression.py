"""Gradients that are sent to other workers in 16 bits."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfaccel.compat.collectives import Collectives, collectives_of
from tfaccel.compat.keras_fits import gradient_reduction
from tfaccel.compat.patching import SharedContext

CHOICES = (None, "bfloat16")
# What one collective carries at most. Each costs a round of messages, and may begin when the
# gradients in it are there.
BYTES_PER_PACK = 32 * 2**20
# Gathering brings each worker (n - 1) times the gradients, a reduction 2 (n - 1) / n times: for
# two that is the same, in one round of messages and without a second rounding.
_MOST_GATHERED = 2

_Reduce = Callable[[Any, Sequence[Any]], Any]


def compressed(bytes_per_pack: int = BYTES_PER_PACK) -> contextlib.AbstractContextManager[None]:
    """Inside, optimizers' steps that are traced send float32 gradients in bfloat16."""
    return SharedContext(lambda: _replaced(bytes_per_pack))


@contextlib.contextmanager
def _replaced(bytes_per_pack: int) -> Iterator[None]:
    local = threading.local()

    def reduction(own: _Reduce) -> _Reduce:
        def reduce(optimizer: Any, grads_and_vars: Sequence[Any]) -> Any:
            context = tf.distribute.get_replica_context()
            if context is None or getattr(local, "inside", False):
                return own(optimizer, grads_and_vars)
            local.inside = True
            try:
                return _reduced(own, optimizer, list(grads_and_vars), context, bytes_per_pack)
            finally:
                local.inside = False

        return reduce

    with gradient_reduction(reduction):
        yield


def _reduced(
    own: _Reduce, optimizer: Any, pairs: list[Any], context: Any, bytes_per_pack: int
) -> list[Any]:
    """Each variable with its summed gradient: dense float32 is summed here, all else by Keras."""
    ours = [i for i, (grad, _) in enumerate(pairs) if _serves(grad)]
    rest = [i for i in range(len(pairs)) if i not in set(ours)]
    sums = _summed([pairs[i][0] for i in ours], context, bytes_per_pack)
    found = dict(zip(ours, sums, strict=True))
    if any(pairs[i][0] is not None for i in rest):
        others = [grad for grad, _ in own(optimizer, [pairs[i] for i in rest])]
        found.update(zip(rest, others, strict=True))
    return [(found.get(i), variable) for i, (_, variable) in enumerate(pairs)]


def _serves(grad: Any) -> bool:
    return (
        isinstance(grad, tf.Tensor) and grad.dtype == tf.float32 and grad.shape.is_fully_defined()
    )


def _summed(grads: Sequence[tf.Tensor], context: Any, bytes_per_pack: int) -> list[tf.Tensor]:
    """Sums over all replicas; they are the same on each to the last bit."""
    sums = []
    for pack in packs([grad.shape.num_elements() for grad in grads], bytes_per_pack // 2):
        members = [grads[i] for i in pack]
        flat = tf.concat([tf.reshape(tf.cast(g, tf.bfloat16), [-1]) for g in members], 0)
        total = _sum_of_all(flat, context)
        parts = tf.split(total, [g.shape.num_elements() for g in members])
        sums += [tf.reshape(p, g.shape) for p, g in zip(parts, members, strict=True)]
    return sums


def _sum_of_all(flat: tf.Tensor, context: Any) -> tf.Tensor:
    """The float32 sum of every replica's bfloat16 numbers."""
    replicas, ours = context.num_replicas_in_sync, collectives_of(context)
    if ours is not None and ours.on_cpu and replicas > _MOST_GATHERED:
        return _scattered_sum(flat, replicas, ours)
    if ours is None or replicas > _MOST_GATHERED:
        return tf.cast(context.all_reduce(tf.distribute.ReduceOp.SUM, flat), tf.float32)
    rows = tf.reshape(_gathered(flat, ours), [replicas, -1])
    return tf.reduce_sum(tf.cast(rows, tf.float32), 0)


def _scattered_sum(flat: tf.Tensor, replicas: int, ours: Collectives) -> tf.Tensor:
    """Each replica sums a part of the numbers in float32, and all get the rounded sums.

    A worker sends and gets 2 (n - 1) / n times the numbers, as in a ring that reduces them, which
    would round each partial sum.
    """
    size = flat.shape.num_elements()
    rows = tf.reshape(tf.pad(flat, [[0, -size % replicas]]), [replicas, -1])
    part = tf.reduce_sum(tf.cast(ours.exchanged(rows), tf.float32), 0)
    return tf.cast(_gathered(tf.cast(part, tf.bfloat16), ours)[:size], tf.float32)


def _gathered(flat: tf.Tensor, ours: Collectives) -> tf.Tensor:
    # TensorFlow's gathering knows no bfloat16. It copies the bits, whatever they are called.
    return tf.bitcast(ours.gathered(tf.bitcast(flat, tf.float16)), tf.bfloat16)


def packs(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Indices of gradients, neighbours together up to `most` numbers; a larger one stands alone.

    >>> packs([2, 3, 9, 1], 5)
    [[0, 1], [2], [3]]
    """
    found: list[list[int]] = []
    room = 0
    for index, size in enumerate(sizes):
        if not found or size > room:
            found.append([])
            room = most
        found[-1].append(index)
        room -= size
    return found
