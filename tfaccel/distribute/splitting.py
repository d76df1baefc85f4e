"""How workers and replicas divide a dataset: by auto-shard policies, and batch by batch."""

from typing import Any

import keras
import tensorflow as tf

from tfaccel.system.arguments import one_of

POLICIES = ("auto", "data", "file", "off")


def sharded_by(dataset: Any, policy: str) -> tf.data.Dataset:
    """The dataset with a policy in its options; `"auto"` leaves those it has.

    Raises:
        TypeError: if `dataset` isn't a `tf.data.Dataset`, or was distributed before.
        ValueError: if its elements aren't batches, or `policy` is not in `POLICIES`.

    Source: https://www.tensorflow.org/tutorials/distribute/input#sharding
    """
    one_of("auto_shard_policy", policy, POLICIES)
    _check_dataset(dataset)
    if policy == "auto":
        return dataset
    options = tf.data.Options()
    named = getattr(tf.data.experimental.AutoShardPolicy, policy.upper())
    options.experimental_distribute.auto_shard_policy = named
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


def can_split(dataset: tf.data.Dataset) -> bool:
    """Whether elements of this dataset are batches with a first dimension to cut."""
    ranks = [_rank(spec) for spec in keras.tree.flatten(dataset.element_spec)]
    return bool(ranks) and all(rank is None or rank >= 1 for rank in ranks) and ranks[0] is not None


def even_shares(
    dataset: tf.data.Dataset, num_replicas: int, replicas: range, fill: bool
) -> tf.data.Dataset:
    """The batches of these replicas, in turn: each global batch cut in nearly equal shares.

    Replica `i` of `R` (of all workers) gets samples `n * i // R` to `n * (i + 1) // R` of a batch
    of `n`. So all replicas get as many batches as there are global ones, shares differ by one
    sample at most, and put together in order they are the global batch. TensorFlow's own
    splitting rounds up: of 4 samples on 3 replicas it gives 2, 2 and 0, and BatchNormalization
    makes NaN of an empty batch. With `fill`, a batch of fewer samples than
    there are replicas has some of its samples given to several, so that no replica is without.

    Raises:
        ValueError: if all batches are known to be smaller than `num_replicas`.
    """
    static = _static_batch_size(dataset.element_spec)
    if static is not None and static < num_replicas:
        raise ValueError(
            f"A batch must have a sample for each of the {num_replicas} replicas. "
            f"Received: batches of {static}; batch by `strategy.global_batch_size(n)`."
        )

    def cut(*batch: Any) -> tuple[Any, ...]:
        size = _batch_size(batch) if static is None else static
        return tuple(_share(batch, *_bounds(size, i, num_replicas, fill)) for i in replicas)

    # Each worker must meet the batches in the same order.
    shares = dataset.map(cut, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    shares = shares.flat_map(_one_by_one)
    length = int(dataset.cardinality())
    if length == tf.data.INFINITE_CARDINALITY or (length >= 0 and len(replicas) == 1):
        # Keras would take the length of what several replicas get in turn for its number of steps.
        shares = shares.apply(tf.data.experimental.assert_cardinality(length))
    return shares.prefetch(tf.data.AUTOTUNE)


def _bounds(size: Any, index: int, of: int, fill: bool) -> tuple[Any, Any]:
    """Where a replica's share of `size` samples starts and stops."""
    start, stop = size * index // of, size * (index + 1) // of
    if fill and not isinstance(size, int):
        # An empty batch, which no dataset makes but a user's filter may, stays empty.
        alone = index % tf.maximum(size, 1)
        start = tf.where(size < of, alone, start)
        stop = tf.where(size < of, tf.minimum(alone + 1, size), stop)
    return start, stop


def _one_by_one(*shares: Any) -> tf.data.Dataset:
    parts = [tf.data.Dataset.from_tensors(share) for share in shares]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.concatenate(part)
    return joined


def _share(batch: tuple[Any, ...], start: Any, stop: Any) -> Any:
    share = keras.tree.map_structure(lambda leaf: _cut(leaf, start, stop), batch)
    # tf.data spreads a tuple over arguments, and gives anything else as one.
    return share if len(share) > 1 else share[0]


def _cut(leaf: Any, start: Any, stop: Any) -> Any:
    if isinstance(leaf, tf.SparseTensor):
        zeros = tf.zeros_like(leaf.dense_shape)
        first = tf.concat([[tf.cast(start, tf.int64)], zeros[1:]], 0)
        size = tf.concat([[tf.cast(stop - start, tf.int64)], leaf.dense_shape[1:]], 0)
        return tf.sparse.slice(leaf, first, size)
    return leaf if leaf is None else leaf[start:stop]


def _batch_size(batch: tuple[Any, ...]) -> tf.Tensor:
    leaf = keras.tree.flatten(batch)[0]
    if isinstance(leaf, tf.SparseTensor):
        return tf.cast(leaf.dense_shape[0], tf.int32)
    if isinstance(leaf, tf.RaggedTensor):
        return tf.cast(leaf.nrows(), tf.int32)
    return tf.shape(leaf)[0]


def _rank(spec: Any) -> int | None:
    shape = getattr(spec, "shape", None)
    return None if shape is None else shape.rank


def _static_batch_size(element_spec: Any) -> int | None:
    sizes = {
        spec.shape[0] for spec in keras.tree.flatten(element_spec) if getattr(spec, "shape", None)
    }
    return sizes.pop() if len(sizes) == 1 else None
