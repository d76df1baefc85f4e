"""Values that consist of one for each replica: batches, variables, results."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def local_values(value: Any) -> tuple[Any, ...]:
    """The value of each replica of this process; of anything else, itself alone.

    Args:
        value: a batch's tensor, a variable or a result, with or without a strategy.
    """
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
    return tf.nest.map_structure(_of_first_replica, element_spec)


def _of_first_replica(spec: Any) -> Any:
    # The type of such a spec has no public name; its parts are what it serializes to.
    if type(spec).__name__ != "PerReplicaSpec":
        return spec
    parts = getattr(spec, "_value_specs", None)
    if not parts:
        raise RuntimeError(
            "tfaccel can't tell a replica's part of a distributed batch: this TensorFlow keeps "
            "PerReplicaSpec's parts elsewhere. Please report it with the version of TensorFlow."
        )
    return parts[0]


def on_replicas(strategy: Any, function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)` on every replica; without a strategy, here."""
    return function(*args) if strategy is None else strategy.run(function, args=args)


def replica_id() -> int:
    """Which replica is being traced or run; 0 without a strategy."""
    context = tf.distribute.get_replica_context()
    return 0 if context is None else int(tf.get_static_value(context.replica_id_in_sync_group))
