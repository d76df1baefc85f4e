"""What replicas tell each other, also by operations that `tf.distribute` has no name for."""

from typing import Any

import tensorflow as tf


class Collectives:
    """What the replicas of a strategy hand to each other, as one of them traces it.

    Args:
        launcher: TensorFlow's `CollectiveReplicaLauncher` of this replica.
    """

    def __init__(self, launcher: Any):
        self._launcher = launcher

    @property
    def on_cpu(self) -> bool:
        """Whether the replica is on a CPU."""
        return "CPU" in self._launcher._device

    def gathered(self, values: tf.Tensor) -> tf.Tensor:
        """Every replica's values, one behind the other; all have as many.

        `ReplicaContext.all_gather` asks for their number first, and copies what comes in twice.
        """
        return self._launcher._all_gather(values, None)

    def exchanged(self, rows: tf.Tensor) -> tf.Tensor:
        """The rows for this replica, of each in turn; there is one for each replica in `rows`."""
        one = self._launcher
        key, token = one._next_instance_key(), one._get_ordering_token()
        with tf.device(one._device):
            return tf.raw_ops.CollectiveAllToAllV2(
                input=rows,
                group_size=one._group_size,
                group_key=one._group_key,
                instance_key=key,
                ordering_token=[] if token is None else [token],
                communication_hint="auto",
                timeout_seconds=0.0,
            )


# What is used of a launcher.
_NEEDED = ("_device", "_group_size", "_group_key", "_all_gather", "_next_instance_key")


def collectives_of(context: Any) -> Collectives | None:
    """Those of a replica's context; None where this TensorFlow, or the strategy, has others."""
    extended = context.strategy.extended
    launchers = getattr(getattr(extended, "_cross_device_ops", None), "_launchers", None)
    if not launchers:
        return None
    replica = tf.get_static_value(context.replica_id_in_sync_group)
    if replica is None:
        return None
    one = launchers[int(replica) % len(launchers)]
    return Collectives(one) if all(hasattr(one, name) for name in _NEEDED) else None


def xla_obstacle(strategy: tf.distribute.Strategy) -> str:
    """Why XLA can't compile a step of several replicas."""
    if len(strategy.extended.worker_devices) > 1:
        return "XLA can't use variables that are mirrored on several devices"
    return "XLA can't compile the collective operations by which workers sum their gradients"


def true_on_all(flag: Any) -> Any:
    """Whether a flag is true on all replicas, each of which asks while it is traced."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return flag
    lacking = tf.cast(tf.logical_not(flag), tf.int32)
    return tf.equal(context.all_reduce(tf.distribute.ReduceOp.SUM, lacking), 0)
