"""Values that consist of one for each replica: batches, variables, results."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfaccel.compat.tensorflow_private import part_of_replica


def local_values(value: Any) -> tuple[Any, ...]:
    """The value of each replica of this process; of what is not distributed, that alone."""
    if isinstance(value, tf.distribute.DistributedValues):
        return tuple(value.values)
    return (value,)


def local_batches(batch: Any) -> tuple[Any, ...]:
    """A batch as each replica of this process gets it, in turn."""
    leaves = [local_values(leaf) for leaf in tf.nest.flatten(batch)]
    count = max(map(len, leaves), default=1)
    return tuple(
        tf.nest.pack_sequence_as(batch, [leaf[i if len(leaf) > 1 else 0] for leaf in leaves])
        for i in range(count)
    )


def replica_spec(element_spec: Any) -> Any:
    """What one replica gets of elements of this spec."""
    return tf.nest.map_structure(part_of_replica, element_spec)


def on_replicas(strategy: Any, function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)` on every replica; without a strategy, here."""
    return function(*args) if strategy is None else strategy.run(function, args=args)


def replica_id() -> int:
    """Which replica is being traced or run; 0 without a strategy."""
    context = tf.distribute.get_replica_context()
    return 0 if context is None else int(tf.get_static_value(context.replica_id_in_sync_group))
