"""A predict function for models that read strings, which an engine runs in part."""

import dataclasses
import pathlib
from collections.abc import Sequence
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
    each_batch,
    inputs_of,
)
from tfaccel.inference.engines.forward import Forward
from tfaccel.inference.engines.words import Split, Tail
from tfaccel.inference.predict_function import signature
from tfaccel.inference.quality import Quality
from tfaccel.inference.sample import spec_of


class WordsFunction(ServedFunction):
    """Strings become numbers in TensorFlow, and an engine predicts from these.

    Args:
        workload, plan, prepared, cache, forwards, quality: as for `EngineFunction`.

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
        super().__init__(plan, keras.tree.flatten(signature(workload.model, x)))
        split = Split.of(workload.model)
        if isinstance(split, Unsupported):
            raise ValueError(str(split))
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

    def __call__(self, data: Any) -> Any:
        return each_batch(lambda x: self._rest.served()(self._numbers(x)), data)

    def any_size(self, data: Any) -> Any:
        return each_batch(lambda x: self._rest.served()(self._numbers(x), any_size=True), data)

    def again(self) -> "WordsFunction":
        workload, plan, prepared, cache, quality = self._given
        workload = dataclasses.replace(workload)
        return WordsFunction(workload, plan, prepared, cache=cache, quality=quality)

    def served(self) -> Served:
        inner = self._rest.served()
        return Served(_Unsaved(inner.runner), inner.signature)


class _Unsaved(Runner):
    """Says why what runs can't be written."""

    def __init__(self, runner: Runner):
        self._runner = runner

    def run(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        return self._runner.run(arrays)

    def save(self, folder: pathlib.Path) -> None:
        raise ValueError(
            "an engine's part of a model that reads strings can't be saved; "
            "accelerate with `excludes` naming the engine, and save that"
        )
