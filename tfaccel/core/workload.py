"""The workload: the model, batches that it was fed, and how much is to come."""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat import keras_private
from tfaccel.core.looped import Looped
from tfaccel.core.replicas import local_batches
from tfaccel.system.device import Device, current_device

_USUAL_SIZES = 2


@dataclasses.dataclass(frozen=True)
class Workload:
    """A compiled model with real batches to try plans on.

    Attributes:
        model: the user's model. Passes may read it at any time and change it only
            inside their `applied` context.
        batches: batches as the user's iterator gave them, all of one shape.
        element_spec: the iterator's `element_spec` (batch size None), so that a
            replayed batch meets the same trace as a real one.
        steps_to_come: batches still to be trained on; None when unknown.
        first_step_seconds: of the baseline's first step, tracing included.
        trace_seconds: of a first step with its trace, where the step was traced in an earlier fit
            and `first_step_seconds` does not show it; 0.0 elsewhere.
        step_seconds: of a baseline step once traced.
        device: where it runs.
        callbacks: those of the fit; none outside of one, None where they can't be seen.
        training: whether steps train; in predictions they do not.
        sizes_vary: whether batches come in too many sizes to compile for each.
        optimize: the aim of predictions, `"throughput"` or `"latency"`.
        allow: further precisions that the user allows for predictions: `"int8"`.
        seen_samples: of a batch that is no longer held.
    """

    model: keras.Model
    batches: tuple[Any, ...] = ()
    element_spec: Any = None
    steps_to_come: int | None = None
    first_step_seconds: float = 0.0
    trace_seconds: float = 0.0
    step_seconds: float = 0.0
    device: Device = dataclasses.field(default_factory=current_device)
    callbacks: tuple[keras.callbacks.Callback, ...] | None = ()
    training: bool = True
    sizes_vary: bool = False
    optimize: str = "throughput"
    allow: tuple[str, ...] = ()
    seen_samples: int = 0

    @property
    def samples(self) -> int:
        """Of a batch; 0 where none was seen."""
        return batch_size(self.batches[0]) if self.batches else self.seen_samples

    def without_data(self) -> "Workload":
        """The same facts, with no batch held."""
        return dataclasses.replace(self, batches=(), seen_samples=self.samples)

    @functools.cached_property
    def layers(self) -> list[keras.layers.Layer]:
        """The model and every layer in it, once each."""
        return keras_private.flatten_layers(self.model)

    def has(self, *kinds: type[keras.layers.Layer]) -> bool:
        """Whether the model has a layer of one of these classes."""
        return any(isinstance(layer, kinds) for layer in self.layers)

    @property
    def in_loop(self) -> bool:
        """Whether a loop of the user's own makes the steps, each on a batch that it has in hand."""
        return isinstance(self.model, Looped)

    @property
    def models(self) -> tuple[keras.layers.Layer, ...]:
        """The user's models: the one that is trained, or those of a loop."""
        return self.model.trained_models if isinstance(self.model, Looped) else (self.model,)

    @property
    def strategy(self) -> tf.distribute.Strategy | None:
        """The strategy that the model trains under; None for TensorFlow's default."""
        strategy = self.model.distribute_strategy
        return None if strategy is default_strategy() else strategy

    @property
    def num_replicas(self) -> int:
        """The replicas that work on each batch together, of all processes."""
        return int(self.model.distribute_strategy.num_replicas_in_sync)

    @property
    def optimizers(self) -> tuple[keras.optimizers.Optimizer, ...]:
        """The compiled optimizer, and others that the model holds as attributes."""
        found = [getattr(self.model, "optimizer", None), *vars(self.model).values()]
        unique = {id(o): o for o in found if isinstance(o, keras.optimizers.Optimizer)}
        return tuple(unique.values())


class CannotReplayError(ValueError):
    """Batches of this kind cannot be kept and fed again under the same trace."""


def replay(batches: tuple[Any, ...], element_spec: Any) -> tf.data.Dataset:
    """A dataset that gives kept batches again, under the iterator's own spec.

    A step is traced for an `element_spec`. Batches fed as they are have a known batch size, so
    they would meet another trace, optimised otherwise and with other rounding. Here the dataset
    of a batch is declared to have the wider spec, which costs nothing (a `map` that forgets
    shapes costs 25 ms to set up, `tf.data.Dataset.from_generator` tens of milliseconds a step).
    `CannotReplayError` where tf.data can't hold the batches as they are.
    """
    try:
        datasets = [
            tf.data.experimental.from_variant(
                tf.data.experimental.to_variant(tf.data.Dataset.from_tensors(batch)), element_spec
            )
            for batch in batches
        ]
    except (TypeError, ValueError) as error:
        raise CannotReplayError(f"batches of {element_spec} can't be kept: {error}") from error
    return unattended(functools.reduce(lambda joined, more: joined.concatenate(more), datasets))


def unattended(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The dataset without tf.data's autotuning, for batches that are in memory already.

    Its iterators have no thread that looks at their pace now and then. Destroying an iterator
    joins that thread, which sleeps for up to a minute between two looks.

    Source: https://www.tensorflow.org/api_docs/python/tf/data/experimental/AutotuneOptions;
    RootDataset::Iterator in tensorflow/core/data/root_dataset.cc
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def default_strategy() -> tf.distribute.Strategy:
    """TensorFlow's strategy where no other is entered."""
    with tf.Graph().as_default():  # leaves the scope of whatever strategy is entered
        return tf.distribute.get_strategy()


def batch_size(batch: Any) -> int:
    """The number of samples in a batch: the first dimension of its first tensor.

    Of a batch for several replicas, the samples of those of this process.
    """
    return sum(map(_samples, local_batches(batch)))


def global_batch_size(batch: Any, strategy: tf.distribute.Strategy | None) -> int:
    """The number of samples in a batch of all replicas; those elsewhere are taken to be alike."""
    replicas = 1 if strategy is None else strategy.num_replicas_in_sync
    here = local_batches(batch)
    return round(sum(map(_samples, here)) * max(1, replicas / len(here)))


def _samples(batch: Any) -> int:
    for leaf in tf.nest.flatten(batch):
        shape = getattr(leaf, "shape", None)
        if shape is not None and shape.rank:
            return int(shape[0] if shape[0] is not None else tf.shape(leaf)[0])
    return 0


def varies(spec: Any) -> bool:
    """Whether tensors of an `element_spec` differ in another dimension than the first."""
    if not isinstance(spec, tf.TensorSpec):
        return spec is not None
    return spec.shape.rank is None or None in spec.shape.as_list()[1:]


def sizes_vary(seen: Collection[Any]) -> bool:
    """Whether batches come in many sizes, as the `shapes` of the first ones show it.

    Two are as usual: the last batch of an epoch is a smaller one.
    """
    return len(set(seen)) > _USUAL_SIZES


def shapes(batch: Any) -> tuple[Any, ...]:
    """The shape of every tensor of a batch, to see whether two batches are alike."""
    leaves = [leaf for part in local_batches(batch) for leaf in tf.nest.flatten(part)]
    return tuple(tuple(getattr(leaf, "shape", ()) or ()) for leaf in leaves)
