"""One loss scale for all replicas."""

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat.patching import SharedContext, class_attribute


def agreed_loss_scale() -> contextlib.AbstractContextManager[None]:
    """Inside, replicas skip a step together when gradients of one of them are not finite.

    Keras's `LossScaleOptimizer` asks each replica about its own gradients, as they are not summed
    yet, and believes the first of a process: what overflowed on another is applied. Of several
    workers some would skip the step, and the others wait for them for good.
    """
    return _AGREED


def _wrapped(own: Callable[..., Any]) -> Callable[..., Any]:
    def check_finite(optimizer: Any, grads: Any) -> Any:
        finite = own(optimizer, grads)
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return finite
        overflowed = tf.cast(tf.logical_not(finite), tf.int32)
        return tf.equal(context.all_reduce(tf.distribute.ReduceOp.SUM, overflowed), 0)

    return check_finite


_KIND = keras.optimizers.LossScaleOptimizer
_AGREED = SharedContext(
    lambda: class_attribute(_KIND, "check_finite", _wrapped(_KIND.check_finite))
)
