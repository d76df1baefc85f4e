"""Multi-worker training that works with Keras 3."""

import contextlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.compat.tensorflow_private import heartbeats
from tfaccel.distribute.compression import compressed
from tfaccel.distribute.replicas import SynchronizedReplicas

# What one all-reduce carries when workers share bytes: 64 MiB of int32.
_CHUNK_NUMBERS = 2**24
# After so much silence a worker counts as dead. Those that wait for it must have ended within 15 s,
# and a busy machine takes half of that to end a process that has loaded TensorFlow.
_HEARTBEAT_SECONDS = 6.0
_MOST_SEEDS = 2**31  # TensorFlow keeps a seed modulo this


class MultiWorker(SynchronizedReplicas, tf.distribute.MultiWorkerMirroredStrategy):
    """`tf.distribute.MultiWorkerMirroredStrategy` for Keras 3.

    Reductions, statistics and batches are as in `SynchronizedReplicas`. If no seed is
    set (`keras.utils.set_random_seed`, `tf.random.set_seed`), the chief draws one for
    all, as workers that shuffle differently see some samples twice and others never.

    Like TensorFlow's, it must be created before anything else uses TensorFlow.

    Args:
        cluster_resolver: where the workers are; None reads TF_CONFIG.
        communication_options: `tf.distribute.experimental.CommunicationOptions`.
        heartbeat_seconds: seconds of silence after which a worker counts as dead: the others' steps
            then raise `tf.errors.UnavailableError`. Give more where a network or a machine may be
            silent for longer and come back.

    Raises:
        ValueError: for heartbeat_seconds that aren't positive.
        RuntimeError: if TensorFlow was used before.

    Example, with TF_CONFIG set on each worker:

        strategy = AccelStrategy(MultiWorker(heartbeat_seconds=30))
        with strategy.scope():
            model = build_model()
    """

    def __init__(
        self,
        cluster_resolver: Any = None,
        communication_options: Any = None,
        *,
        heartbeat_seconds: float = _HEARTBEAT_SECONDS,
    ):
        if not heartbeat_seconds > 0:
            raise ValueError(f"heartbeat_seconds must be positive. Received: {heartbeat_seconds!r}")
        with heartbeats(heartbeat_seconds):
            super().__init__(cluster_resolver, communication_options)
        self._compressed: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self.num_workers > 1:
            self._share_seed()

    def compress_gradients(self) -> None:
        """From now on steps that are traced send float32 gradients in bfloat16."""
        self._compressed = compressed()

    def run(self, fn: Any, args: Any = (), kwargs: Any = None, options: Any = None) -> Any:
        with self._compressed:
            return super().run(fn, args, kwargs, options)

    @property
    def num_workers(self) -> int:
        """How many processes train together; 1 in an evaluator."""
        tasks = self.cluster_resolver.cluster_spec().as_dict()
        if self.cluster_resolver.task_type == "evaluator":
            return 1
        return max(1, sum(len(tasks.get(kind, ())) for kind in ("chief", "worker")))

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes checkpoints."""
        resolver = self.cluster_resolver
        if "chief" in resolver.cluster_spec().as_dict():
            return resolver.task_type != "worker"
        return resolver.task_type != "worker" or resolver.task_id == 0

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        if isinstance(dataset, tf.data.Dataset) and self.num_workers > 1:
            dataset = self._of_agreed_length(dataset)
        return super().experimental_distribute_dataset(dataset, options)

    def distribute_datasets_from_function(self, dataset_fn: Any, options: Any = None) -> Any:
        if self.num_workers == 1:
            return super().distribute_datasets_from_function(dataset_fn, options)
        return super().distribute_datasets_from_function(
            lambda context: self._of_agreed_length(dataset_fn(context)), options
        )

    def _of_agreed_length(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """The dataset, with its length hidden unless it is the same on all workers.

        Keras stops an epoch at the length that a dataset tells, on each worker by
        itself. Without it, workers go on until all are out of data, in step.
        """
        lengths = self.numbers_of_all(int(dataset.cardinality()))
        return dataset if len(set(lengths)) == 1 else dataset.filter(lambda *_: True)

    @property
    def _position(self) -> int:
        """This worker's place among all, from 0; a task of type `"chief"` comes first."""
        resolver = self.cluster_resolver
        if resolver.task_type == "chief":
            return 0
        return len(resolver.cluster_spec().as_dict().get("chief", ())) + resolver.task_id

    def share_bytes(self, data: bytes) -> bytes:
        """The chief's bytes, on every worker. All must call it; what others pass is ignored."""
        size = int(self._from_chief(np.array([len(data)], np.int32))[0])
        if size == 0:
            return b""  # TensorFlow crashes on a reduction of nothing.
        padded = np.zeros(-(-size // 4) * 4, np.uint8)
        if self.is_chief:
            padded[:size] = np.frombuffer(data, np.uint8)
        numbers = padded.view(np.int32)
        chunks = np.split(numbers, range(_CHUNK_NUMBERS, len(numbers), _CHUNK_NUMBERS))
        return b"".join(self._from_chief(chunk).tobytes() for chunk in chunks)[:size]

    def share_number(self, number: float) -> float:
        """The chief's number, to the last bit, on every worker. All must call it together."""
        halves = np.array([number], np.float64).view(np.int32)
        return float(self._from_chief(halves).view(np.float64)[0])

    def numbers_of_all(self, number: float) -> list[float]:
        """Each worker's number, to the last bit, the chief's first; all must call it together."""
        mine = np.zeros(self.num_workers, np.float64)
        mine[self._position] = number
        return super().reduce("SUM", tf.constant(mine), None).numpy().tolist()

    def _from_chief(self, numbers: np.ndarray) -> np.ndarray:
        """The sum over workers of the chief's int32 numbers and the others' zeros."""
        own = numbers if self.is_chief else np.zeros_like(numbers)
        return super().reduce("SUM", tf.constant(own), None).numpy()

    def _share_seed(self) -> None:
        own = _global_seed()
        drawn = random.SystemRandom().randrange(_MOST_SEEDS) if own is None else own
        chiefs = self._from_chief(np.array([drawn % _MOST_SEEDS], np.int32))
        if own is None:
            tf.random.set_seed(int(chiefs[0]))

    def _differ_in_size(self, values: Sequence[Any]) -> bool:
        # By the Cauchy-Schwarz inequality both sides are equal only if all sizes are.
        sizes = np.array([value.shape[0] for value in values], np.int64)
        sums = tf.constant([sizes.sum(), (sizes**2).sum()])
        total, squares = super().reduce("SUM", sums, None).numpy()
        return bool(total**2 != squares * self.num_replicas_in_sync)


def _global_seed() -> int | None:
    """The seed that was set for TensorFlow, if any.

    It is read from a traced function, which inherits it: asking for it eagerly draws a number.
    """
    seen = []
    trace = tf.function(lambda: seen.append(tf.compat.v1.get_default_graph().seed))
    trace.get_concrete_function()
    return seen[0]
