"""How workers divide a dataset: auto-shard policies by name."""

from typing import Any

import tensorflow as tf

POLICIES = {
    "auto": tf.data.experimental.AutoShardPolicy.AUTO,
    "data": tf.data.experimental.AutoShardPolicy.DATA,
    "file": tf.data.experimental.AutoShardPolicy.FILE,
    "off": tf.data.experimental.AutoShardPolicy.OFF,
}


def check_policy_name(policy: Any) -> None:
    """Raises ValueError for what isn't the name of an auto-shard policy."""
    if policy not in POLICIES:
        known = ", ".join(map(repr, POLICIES))
        raise ValueError(f"auto_shard_policy must be one of {known}. Received: {policy!r}")


def sharded_by(dataset: Any, policy: str) -> tf.data.Dataset:
    """The dataset with a policy in its options; `"auto"` leaves those it has.

    Args:
        dataset: a `tf.data.Dataset` of batches.
        policy: a name in `POLICIES`.

    Raises:
        TypeError: if `dataset` isn't a `tf.data.Dataset`, or was distributed before.
        ValueError: if its elements aren't batches, or `policy` is no such name.

    Source: https://www.tensorflow.org/tutorials/distribute/input#sharding
    """
    check_policy_name(policy)
    _check_dataset(dataset)
    if policy == "auto":
        return dataset
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = POLICIES[policy]
    return dataset.with_options(options)


def _check_dataset(dataset: Any) -> None:
    if isinstance(dataset, tf.distribute.DistributedDataset):
        raise TypeError("dataset must be a tf.data.Dataset. Received one that is distributed.")
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(f"dataset must be a tf.data.Dataset. Received: {type(dataset).__name__}")
    for spec in tf.nest.flatten(dataset.element_spec):
        if getattr(spec, "shape", None) is not None and spec.shape.rank == 0:
            raise ValueError(
                "dataset must consist of batches: batch it by "
                "`dataset.batch(strategy.global_batch_size(n))`. "
                f"Received elements of {dataset.element_spec}"
            )
