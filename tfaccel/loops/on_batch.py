"""`train_on_batch` and its like: accelerated, and traced once for all sizes of batches."""

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.autotune.eligibility import ineligibility
from tfaccel.autotune.options import Options
from tfaccel.compat import keras_private
from tfaccel.compat.patching import instance_attribute, set_attribute
from tfaccel.core.looped import Call
from tfaccel.core.workload import Workload
from tfaccel.loops.accelerated_step import AcceleratedStep, Stepper
from tfaccel.steps.user_functions import BatchFunction


class AcceleratedBatches(AcceleratedStep):
    """A compiled model's `train_on_batch`, `test_on_batch` and `predict_on_batch`.

    Made by `accelerate_step(model)`; called as `train_on_batch`. The methods take and return what
    the model's own do, as Keras's code runs around each step. The number of samples is left open
    in the traces, so that a batch of a new size brings no new one. Training steps run under a plan
    where one is found. The model's own methods are left as they are.

    Args:
        model: compiled.
        settings: what the user asked for.
        steps: how many calls there will be in all; None where unknown.
        verbose: whether to print the choice.
    """

    def __init__(self, model: keras.Model, settings: Options, steps: int | None, verbose: int):
        self._model = model
        self._settings, self._steps, self._verbose = settings, steps, verbose
        super().__init__(self._begun())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.train_on_batch(*args, **kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`, which says what it takes, returns and raises."""
        with self.during("train_on_batch"):
            return self._model.train_on_batch(*args, **kwargs)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.test_on_batch`, which says what it takes, returns and raises."""
        with self.during("test_on_batch"):
            return self._model.test_on_batch(*args, **kwargs)

    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict_on_batch`, which says what it takes, returns and raises."""
        with self.during("predict_on_batch"):
            return self._model.predict_on_batch(*args, **kwargs)

    def during(self, method: str) -> contextlib.AbstractContextManager[None]:
        """A block for one call of the model's method of this name, in which Keras runs our step."""
        name = _function_of(method)
        steps = {
            "train_function": lambda batch: self._stepper(batch),
            "test_function": lambda batch: self._test(batch),
            "predict_function": lambda batch: self._predict(batch),
        }
        return self._standing_in(name, steps[name])

    def _begun(self) -> Stepper:
        """Begins anew with the model as it is compiled now."""
        model = self._model
        self._parts, self._own = _parts(model), dict[str, Callable[..., Any]]()
        self._note, compiled = ineligibility(model), bool(model.jit_compile)
        train = BatchFunction(model.train_step, compiled, model.loss)
        self._test = BatchFunction(model.test_step, compiled)
        self._predict = BatchFunction(model.predict_step, compiled)
        return Stepper(
            models=(model,),
            optimizers=Workload(model).optimizers,
            function=train,
            original=lambda batch: train(Call((batch,), {})),
            settings=self._settings,
            steps=self._steps,
            verbose=self._verbose,
            note=self._note,
        )

    def _standing_in(
        self, name: str, step: Callable[[Call], Any]
    ) -> contextlib.AbstractContextManager[None]:
        parts = _parts(self._model)
        if [id(one) for one in parts] != [id(one) for one in self._parts]:
            self._stepper = self._begun()
        if self._note:
            return contextlib.nullcontext()

        def function(batches: Any) -> Any:
            batch = next(iter(batches))
            if all(map(_is_array, tf.nest.flatten(batch))):
                return step(Call((batch,), {}))
            return self._own_function(name)([batch])

        return instance_attribute(self._model, name, _StandIn(function))

    def _own_function(self, name: str) -> Callable[..., Any]:
        """Keras's own function, for data that is no array."""
        if name not in self._own:
            with set_attribute(self._model, name, None):
                getattr(self._model, f"make_{name}")()
                self._own[name] = getattr(self._model, name)
        return self._own[name]


def has_stand_in(model: keras.Model, method: str) -> bool:
    """Whether a call of the model's method is inside an `AcceleratedBatches`."""
    return isinstance(vars(model).get(_function_of(method)), _StandIn)


def _function_of(method: str) -> str:
    """The name of the function that a method of the model calls for the step."""
    return f"{method.removesuffix('_on_batch')}_function"


class _StandIn:
    """Stands in for Keras's own function of a step."""

    def __init__(self, function: Callable[[Any], Any]):
        self._function = function

    def __call__(self, batches: Any) -> Any:
        return self._function(batches)


def _parts(model: keras.Model) -> list[Any]:
    """The parts of a model that `compile` makes anew."""
    return [model.optimizer, *keras_private.losses_and_metrics(model)]


def _is_array(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, np.ndarray | np.generic) or tf.is_tensor(leaf)
