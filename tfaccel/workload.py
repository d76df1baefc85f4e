"""What is trained: the model, batches it was fed, and how much is to come."""

import dataclasses
import functools
from typing import Any

import keras
import tensorflow as tf

from tfaccel import keras_private
from tfaccel.device import Device, current_device


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
        first_step_seconds: what the baseline's first step took, tracing included.
        step_seconds: what a baseline step takes once traced.
        device: where it runs.
        callbacks: those of the fit; none outside of one, None where they can't be seen.
        scratch: a place for variables that a pass needs from step to step and that
            must not enter the user's model or optimizer, by pass name. Each built
            step has its own.
    """

    model: keras.Model
    batches: tuple[Any, ...] = ()
    element_spec: Any = None
    steps_to_come: int | None = None
    first_step_seconds: float = 0.0
    step_seconds: float = 0.0
    device: Device = dataclasses.field(default_factory=current_device)
    callbacks: tuple[keras.callbacks.Callback, ...] | None = ()
    scratch: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    @functools.cached_property
    def layers(self) -> list[keras.layers.Layer]:
        """The model and every layer in it, once each."""
        return keras_private.flatten_layers(self.model)

    @property
    def optimizers(self) -> tuple[keras.optimizers.Optimizer, ...]:
        """The compiled optimizer, and others that the model holds as attributes."""
        found = [getattr(self.model, "optimizer", None), *vars(self.model).values()]
        unique = {id(o): o for o in found if isinstance(o, keras.optimizers.Optimizer)}
        return tuple(unique.values())

    def for_step(self) -> "Workload":
        """The same workload with a fresh scratch, for one more built step."""
        return dataclasses.replace(self, scratch={})


class CannotReplayError(ValueError):
    """Batches of this kind cannot be kept and fed again under the same trace."""


def replay(batches: tuple[Any, ...], element_spec: Any) -> tf.data.Dataset:
    """A dataset that gives kept batches again, under the iterator's own spec.

    A step is traced for an `element_spec`. Batches fed as they are have a known
    batch size, so they would meet another trace, optimised otherwise and with
    other rounding. Here the dataset of a batch is declared to have the wider spec,
    which costs nothing (a `map` that forgets shapes costs 25 ms to set up,
    `tf.data.Dataset.from_generator` tens of milliseconds a step).

    Raises:
        CannotReplayError: the batches are of a type that tf.data can't hold as they are.
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
    return functools.reduce(lambda joined, more: joined.concatenate(more), datasets)


def batch_size(batch: Any) -> int:
    """The number of samples in a batch: the first dimension of its first tensor."""
    for leaf in tf.nest.flatten(batch):
        shape = getattr(leaf, "shape", None)
        if shape is not None and shape.rank:
            return int(shape[0] if shape[0] is not None else tf.shape(leaf)[0])
    return 0


def shapes(batch: Any) -> tuple[Any, ...]:
    """The shape of every tensor of a batch, to see whether two batches are alike."""
    return tuple(tuple(getattr(leaf, "shape", ()) or ()) for leaf in tf.nest.flatten(batch))
