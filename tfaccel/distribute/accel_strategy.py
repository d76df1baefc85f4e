"""AccelStrategy: the distribution strategy that suits where the training runs."""

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfaccel.distribute import choice
from tfaccel.distribute.checkpoints import CheckpointPaths
from tfaccel.distribute.compression import CHOICES
from tfaccel.distribute.defaults import (
    check_dtype_policy,
    check_jit_compile,
    check_xla,
    image_format,
    model_defaults,
    policy_name,
)
from tfaccel.distribute.gpu_memory import check_memory, set_up_gpus
from tfaccel.distribute.multi_worker import MultiWorker
from tfaccel.distribute.splitting import POLICIES, sharded_by
from tfaccel.system.arguments import one_of, positive
from tfaccel.system.device import current_device


def _handed_on(name: str) -> Any:
    """A method of a strategy that the one behind an `AccelStrategy` runs."""

    @functools.wraps(getattr(tf.distribute.Strategy, name))
    def method(self: "AccelStrategy", *args: Any, **kwargs: Any) -> Any:
        return getattr(self.strategy, name)(*args, **kwargs)

    return method


class AccelStrategy(tf.distribute.Strategy):
    """One device, several, or many machines: the same lines for all of them.

    It chooses a `tf.distribute` strategy and stands for it wherever Keras and
    TensorFlow take one. Models made inside `scope()` get the mixed precision policy and
    the image data format that suit the device; Keras's global settings are what they
    were on leaving.

    `"auto"` is, in this order: many processes if TF_CONFIG or a Slurm step names
    several workers; all devices if TensorFlow sees several GPUs (or logical CPUs that
    were configured); else TensorFlow's default, under which Keras uses XLA on a GPU,
    as under no other.

    With several workers, create it before anything else uses TensorFlow. Inside
    `scope()`, `tf.distribute.get_strategy()` is the strategy that it stands for, which
    is also what `tf.distribute.experimental_set_strategy` needs.

    Args:
        strategy: `"auto"`, `"default"` (the strategy in force, else TensorFlow's
            own), `"one_device"`, `"mirrored"`, `"multi_worker"`, or a strategy, which
            is taken as it is.
        mixed_precision: the policy of new models: `"auto"` (the dtype that a GPU
            multiplies fast; float32 on a CPU, where `AccelCallback` tries 16 bits),
            False (Keras's global one), `"bfloat16"`, `"float16"`, or a policy's name.
        jit_compile: what the attribute `jit_compile` holds, for you to hand to `model.compile`:
            `"auto"`, True or False. `"auto"` is Keras's choice.
        data_format: of images in new models: `"auto"` (channels-last),
            `"channels_last"`, `"channels_first"`, or False (Keras's global one).
        memory_growth: let TensorFlow take GPU memory as it needs it, not all at once. Ignored
            with a strategy of your own: making it has started the GPUs.
        memory_limit_bytes: let it take no more than this of each GPU, in whole MiB; None for no
            limit.
        auto_shard_policy: how `distribute` divides a dataset among workers: `"auto"`
            (as the dataset's own options say), `"data"`, `"file"` or `"off"`.
        compress_gradients: `"bfloat16"`: workers send each other dense float32 gradients in
            bfloat16, which halves the bytes; None: as they are. Each replica's gradient is rounded
            once, by 2**-8 of itself at most, and these are summed in float32: a sum over two
            replicas is off by 2**-8 of the sum of their sizes at most. With more replicas on CPUs
            each sums a part of the numbers and hands its sums on, which are rounded once more, by
            2**-8 of the sum at most. With more on GPUs TensorFlow's all-reduce sums in bfloat16,
            and rounds each partial sum. It holds for all that this process trains by several
            workers, from the next trace on; with one process nothing is sent.

    Attributes:
        strategy: the `tf.distribute` strategy that does the work.
        reason: why it was chosen, in words.
        jit_compile: as given.

    Raises:
        ValueError: for an argument that isn't one of those above, for
            `jit_compile=True` with several replicas on CPUs, and for a TF_CONFIG that
            TensorFlow couldn't read.
        TypeError: for a `memory_growth` or `memory_limit_bytes` of another type.
        RuntimeError: if TensorFlow was used before and that makes it too late.

    Example:

    >>> from tfaccel.distribute import AccelStrategy
    >>> strategy = AccelStrategy("default")
    >>> with strategy.scope():
    ...     model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    ...     model.compile("adam", "mse", jit_compile=strategy.jit_compile)
    >>> x = np.ones((64, 4), "float32")
    >>> batch_size = strategy.global_batch_size(32)
    >>> len(model.fit(x, x[:, :1], batch_size=batch_size, verbose=0).history["loss"])
    1

    Source: https://www.tensorflow.org/guide/distributed_training
    """

    def __init__(
        self,
        strategy: Any = "auto",
        *,
        mixed_precision: Any = "auto",
        jit_compile: Any = "auto",
        data_format: Any = "auto",
        memory_growth: bool = True,
        memory_limit_bytes: int | None = None,
        auto_shard_policy: str = "auto",
        compress_gradients: str | None = None,
    ):
        check_dtype_policy(mixed_precision)
        self._data_format = image_format(data_format)
        check_jit_compile(jit_compile)
        self._auto_shard_policy = one_of("auto_shard_policy", auto_shard_policy, POLICIES)
        one_of("compress_gradients", compress_gradients, CHOICES)
        check_memory(memory_growth, memory_limit_bytes)
        given = isinstance(strategy, tf.distribute.Strategy)
        # Before choosing, which may start GPUs. Who made a strategy has started them.
        if not given or memory_limit_bytes is not None:
            set_up_gpus(memory_growth, memory_limit_bytes)
        inner = strategy.strategy if isinstance(strategy, AccelStrategy) else strategy
        chosen, self.reason = choice.choose(inner, os.environ)
        super().__init__(chosen.extended)
        self.strategy: tf.distribute.Strategy = chosen
        if compress_gradients is not None and isinstance(chosen, MultiWorker):
            chosen.compress_gradients()
        self.jit_compile = jit_compile
        self._mixed_precision = mixed_precision
        self._paths = CheckpointPaths(
            self.strategy if isinstance(self.strategy, MultiWorker) else None
        )
        check_xla(jit_compile, self, current_device())

    @contextlib.contextmanager
    def scope(self) -> Iterator[tf.distribute.Strategy]:
        """Inside, new models belong to this strategy and get the settings that suit it.

        Raises:
            RuntimeError: inside the scope of another strategy.
        """
        policy = policy_name(self._mixed_precision, current_device())
        with self.strategy.scope(), model_defaults(policy, self._data_format):
            yield self

    def global_batch_size(self, per_replica_batch_size: int) -> int:
        """The batch size for `fit` or `Dataset.batch`: so many samples for each replica.

        Args:
            per_replica_batch_size: samples that one replica works on in a step.

        Raises:
            ValueError: if it isn't a positive integer.

        Example:

        >>> from tfaccel.distribute import AccelStrategy
        >>> AccelStrategy("default").global_batch_size(32)
        32
        """
        size = positive("per_replica_batch_size", per_replica_batch_size)
        return size * self.num_replicas_in_sync

    def distribute(self, dataset: tf.data.Dataset, auto_shard_policy: str | None = None) -> Any:
        """Distributes a dataset of global batches over workers and replicas.

        `fit` does the same with a dataset that was not distributed; this is for another
        policy and for training loops of your own.

        Args:
            dataset: batches of `global_batch_size(n)` samples.
            auto_shard_policy: how workers divide it. `"data"`: each reads all of it and
                takes its share of every batch, so global batches are those of one
                process. `"file"`: each reads files of its own; there must be as many
                files as workers, and `fit` needs `repeat()` and `steps_per_epoch` if
                they hold different numbers of batches. `"off"`: each takes all of it,
                as it reads other data by itself. `"auto"`: as the dataset's options
                say, else `"data"`. None: as `AccelStrategy` was told.

        Raises:
            TypeError: if `dataset` isn't a `tf.data.Dataset`.
            ValueError: if its elements aren't batches, a batch is smaller than the
                number of replicas, or the policy isn't one of these.

        Example:

        >>> from tfaccel.distribute import AccelStrategy
        >>> strategy = AccelStrategy("default")
        >>> batches = tf.data.Dataset.range(64).batch(strategy.global_batch_size(32))
        >>> sum(1 for _ in strategy.distribute(batches))
        2
        """
        policy = self._auto_shard_policy if auto_shard_policy is None else auto_shard_policy
        return self.strategy.experimental_distribute_dataset(sharded_by(dataset, policy))

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one to write files and to print."""
        return not isinstance(self.strategy, MultiWorker) or self.strategy.is_chief

    def checkpoint_filepath(self, path: str | os.PathLike[str]) -> str:
        """The path to give to `ModelCheckpoint` or `model.save`, on every worker.

        Args:
            path: where the chief writes. Other workers write too, as saving is work
                for all of them, to a temporary place.

        Example:

        >>> from tfaccel.distribute import AccelStrategy
        >>> AccelStrategy("default").checkpoint_filepath("best.keras")
        'best.keras'
        """
        return self._paths.filepath(os.fspath(path))

    def backup_dir(self, path: str | os.PathLike[str]) -> str:
        """The folder to give to `BackupAndRestore`. All workers must call it together.

        Args:
            path: where the chief keeps its backups. If there is one, the other
                workers get it from the chief, and so all resume from the same.

        Example:

        >>> from tfaccel.distribute import AccelStrategy
        >>> AccelStrategy("default").backup_dir("backup")
        'backup'
        """
        return self._paths.backup_dir(os.fspath(path))

    run = _handed_on("run")
    reduce = _handed_on("reduce")
    gather = _handed_on("gather")
    experimental_distribute_dataset = _handed_on("experimental_distribute_dataset")
    distribute_datasets_from_function = _handed_on("distribute_datasets_from_function")
    experimental_local_results = _handed_on("experimental_local_results")
    experimental_distribute_values_from_function = _handed_on(
        "experimental_distribute_values_from_function"
    )

    @property
    def cluster_resolver(self) -> Any:
        return self.strategy.cluster_resolver

    def __repr__(self) -> str:
        replicas = self.num_replicas_in_sync
        return f"AccelStrategy({type(self.strategy).__name__}, {replicas} replicas: {self.reason})"
