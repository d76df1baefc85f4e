"""A predict function for models that read strings, which an engine runs in part."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.core.plan import Plan
from tfaccel.core.step_context import Prepared
from tfaccel.core.unsupported import Unsupported
from tfaccel.core.workload import Workload
from tfaccel.inference.engines.engine import Runner
from tfaccel.inference.engines.engine_function import (
    EngineFunction,
    Served,
    ServedFunction,
    inputs_of,
)
from tfaccel.inference.engines.forward import Forward, flat_forward, input_names
from tfaccel.inference.engines.words import Split, Tail
from tfaccel.inference.predict_function import signature
from tfaccel.inference.quality import Quality
from tfaccel.inference.sample import spec_of


class WordsFunction(ServedFunction):
    """Strings become numbers in TensorFlow, and an engine predicts from these.

    Args:
        workload, plan, prepared, cache, forwards, quality: as for `EngineFunction`.

    Attributes:
        split: the model's.

    Raises:
        ValueError: the model can't be split.
    """

    def __init__(
        self,
        workload: Workload,
        plan: Plan,
        prepared: Prepared | None = None,
        *,
        cache: pathlib.Path | None = None,
        forwards: dict[Plan, Forward] | None = None,
        quality: Quality | None = None,
    ):
        x = inputs_of(workload.batches[0])
        self._spec = signature(workload.model, x)
        names = input_names(workload.model, x)
        super().__init__(plan, map(_named, keras.tree.flatten(self._spec), names))
        split = Split.of(workload.model)
        if isinstance(split, Unsupported):
            raise ValueError(str(split))
        self.split, self._x = split, x
        self._sizes = tuple(tuple(map(int, leaf.shape)) for leaf in keras.tree.flatten(x))
        self._given = workload, plan, prepared, cache, quality
        self._numbers = tf.function(split.numbers, autograph=False, reduce_retracing=True)
        batch = (tuple(self._numbers(x)),)
        rest = dataclasses.replace(
            workload,
            model=Tail(split, workload.model.name),
            batches=(batch,),
            element_spec=spec_of(batch),
        )
        if quality is not None:
            quality = dataclasses.replace(quality, x=tuple(self._numbers(quality.x)))
        self._rest = EngineFunction(
            rest, plan, prepared, cache=cache, forwards=forwards, quality=quality
        )

    def again(self) -> "WordsFunction":
        workload, plan, prepared, cache, quality = self._given
        workload = dataclasses.replace(workload)
        return WordsFunction(workload, plan, prepared, cache=cache, quality=quality)

    def served(self) -> Served:
        inner = self._rest.served()
        outer = dataclasses.replace(inner.signature, inputs=self.specs, sizes=self._sizes)
        return Served(WordsRunner(self._numbers_of, inner.runner), outer)

    @property
    def rest(self) -> Served:
        """The part that the engine runs, from numbers on."""
        return self._rest.served()

    def words(self) -> Forward:
        """The part that TensorFlow runs, from the inputs to the numbers, as one flat graph."""
        model = self._given[0].model
        return flat_forward(lambda batch: self.split.numbers(*batch), self._x, self._spec, model)

    def _numbers_of(self, arrays: Sequence[Any]) -> Sequence[Any]:
        return self._numbers(keras.tree.pack_sequence_as(self._x, list(arrays)))


class WordsRunner(Runner):
    """Turns strings into numbers, from which a runner predicts.

    Args:
        numbers: a function from the model's inputs to the tensors that `rest` takes.
        rest: predicts from these tensors.
    """

    def __init__(self, numbers: Callable[[Sequence[Any]], Sequence[Any]], rest: Runner):
        self._numbers, self._rest = numbers, rest

    def run(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        return self._rest.run(self._numbers(arrays))

    def run_any_size(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        return self._rest.run_any_size(self._numbers(arrays))

    def save(self, folder: pathlib.Path) -> None:
        self._rest.save(folder)  # strings are TensorFlow's: `WordsFunction.words`


def _named(spec: tf.TensorSpec, name: str) -> tf.TensorSpec:
    return tf.TensorSpec(spec.shape, spec.dtype, name)
