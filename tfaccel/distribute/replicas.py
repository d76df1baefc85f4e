"""What Keras needs of a strategy with several replicas, over TensorFlow's own."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat.no_data import mended
from tfaccel.compat.tensorflow_private import feeds_captures_in_loops
from tfaccel.distribute.loss_scale import agreed_loss_scale
from tfaccel.distribute.splitting import can_split, even_shares
from tfaccel.distribute.statistics import (
    averaged_at_the_end,
    averaged_before_updates,
    averaged_statistics,
)

_POLICY = tf.data.experimental.AutoShardPolicy


class SynchronizedReplicas:
    """Mixed into a `tf.distribute` strategy: one model on all replicas, and even batches.

    - Running statistics (BatchNormalization's) are averaged over the replicas in
      each step that updates them. Keras 3 creates them without an aggregation, so that each
      replica, and each worker, would otherwise keep its own.
    - Batches are cut into nearly equal shares, none of them empty, unless the
      dataset's auto-shard policy is FILE, HINT or OFF: then TensorFlow distributes it.
    - A step whose gradients overflow on one replica is skipped by all, under a
      `LossScaleOptimizer`.
    - A replica that is left without data gets an empty batch, and results of the right shape
      and gradients of zero from convolutions and poolings, which oneDNN's kernels don't give.
    - Keras 3 asks its strategy for reductions that TensorFlow's does not do: of a batch,
      to build the model by, and of scalar metrics along an axis (keras#20585, #19246).
      Here they are what Keras means.

    Attributes:
        reads_all: whether each process reads all of the dataset that was distributed last.

    Source: https://www.tensorflow.org/api_docs/python/tf/VariableAggregation
    """

    reads_all = False

    @contextlib.contextmanager
    def scope(self) -> Iterator[Any]:
        """Makes this strategy the current one; new statistics will be averaged."""
        with super().scope(), tf.variable_creator_scope(averaged_statistics):  # type: ignore[misc]
            yield self

    def run(self, fn: Callable[..., Any], args: Any = (), kwargs: Any = None, options: Any = None):
        """Runs `fn` on every replica, as `tf.distribute.Strategy.run` does."""
        feeds_captures_in_loops()  # `steps_per_execution` calls this step in a loop
        devices = self.extended.worker_devices  # type: ignore[attr-defined]
        on_cpu = any("CPU" in device for device in devices)
        with mended(on_cpu=on_cpu), agreed_loss_scale(), averaged_before_updates():
            step = averaged_at_the_end(fn)
            return super().run(step, args, kwargs, options)  # type: ignore[misc]

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        """Distributes a dataset of global batches: every replica gets its share of each."""
        self.reads_all = isinstance(dataset, tf.data.Dataset) and _ours(dataset)
        if not self.reads_all:
            return super().experimental_distribute_dataset(dataset, options)  # type: ignore[misc]
        # Keras hands on (x, y) or (x, y, weights) to train and evaluate, and x alone to
        # predict, where every sample must come back.
        fill = isinstance(dataset.element_spec, tuple) and len(dataset.element_spec) > 1

        def shares(context: tf.distribute.InputContext) -> tf.data.Dataset:
            total = context.num_replicas_in_sync
            local = total // context.num_input_pipelines
            first = context.input_pipeline_id * local
            return even_shares(dataset, total, range(first, first + local), fill)

        return self.distribute_datasets_from_function(shares, options)  # type: ignore[attr-defined]

    def reduce(self, reduce_op: Any, value: Any, axis: int | None = None) -> Any:
        """As `tf.distribute.Strategy.reduce`, also over structures and for scalars.

        Args:
            reduce_op: `"SUM"`, `"MEAN"`, or a `tf.distribute.ReduceOp`.
            value: per-replica values, or a tuple, list or dict of them. Of a structure of
                batches, or of a batch that replicas have unequal shares of, `"MEAN"` without
                an axis is this worker's own first share: Keras asks for it to see shapes and
                dtypes.
            axis: the axis to reduce along too; ignored for scalars.
        """
        mean = axis is None and _is_mean(reduce_op)
        if isinstance(value, (tuple, list, dict)):
            if mean and not all(map(self._is_scalar, keras.tree.flatten(value))):
                return keras.tree.map_structure(self._first, value)
            return keras.tree.map_structure(lambda v: self.reduce(reduce_op, v, axis), value)
        if self._is_scalar(value):
            axis = None
        elif mean and self._is_shared_unequally(value):
            return self._first(value)
        return super().reduce(reduce_op, value, axis)  # type: ignore[misc]

    def _first(self, value: Any) -> Any:
        return self.experimental_local_results(value)[0]  # type: ignore[attr-defined]

    def _is_scalar(self, value: Any) -> bool:
        shape = getattr(self._first(value), "shape", None)
        return shape is not None and tf.TensorShape(shape).rank == 0

    def _is_shared_unequally(self, value: Any) -> bool:
        """Whether replicas have unequal shares. Seen outside of `tf.function`s only."""
        shares = self.experimental_local_results(value)  # type: ignore[attr-defined]
        known = tf.executing_eagerly() and all(isinstance(v, tf.Tensor) for v in shares)
        return known and self._differ_in_size(shares)

    def _differ_in_size(self, values: Sequence[Any]) -> bool:
        return len({value.shape[0] for value in values}) > 1


class Mirrored(SynchronizedReplicas, tf.distribute.MirroredStrategy):
    """`tf.distribute.MirroredStrategy` with averaged statistics and even batches.

    It takes the same arguments.

    Example, on two GPUs:

        strategy = AccelStrategy(Mirrored(["GPU:0", "GPU:1"]))
    """


def _is_mean(reduce_op: Any) -> bool:
    return str(getattr(reduce_op, "value", reduce_op)).upper() == "MEAN"


def _ours(dataset: tf.data.Dataset) -> bool:
    policy = dataset.options().experimental_distribute.auto_shard_policy
    return policy in (_POLICY.AUTO, _POLICY.DATA) and can_split(dataset)
