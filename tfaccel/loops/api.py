"""accelerate_step: a training loop of the user's own, faster, or left as it was."""

import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.autotune.options import Options, make_options
from tfaccel.core.plan import Pass, Plan
from tfaccel.loops.accelerated_step import AcceleratedStep, Stepper
from tfaccel.loops.arguments import as_models, as_optimizers
from tfaccel.loops.on_batch import AcceleratedBatches
from tfaccel.steps.user_functions import LoopFunction
from tfaccel.system.arguments import positive

_PLAIN = (
    "The step is a plain Python function. What it does at each call (counters, prints, lists, "
    "NumPy) would happen once if it were compiled, so it runs as you wrote it. If it may be "
    "compiled, decorate it with tf.function, or pass compile=True."
)


def accelerate_step(
    step: Callable[..., Any] | keras.Model,
    plan: Plan | Sequence[str | Pass] | str | os.PathLike[str] = "auto",
    *,
    model: keras.Model | Sequence[keras.Model] | None = None,
    optimizer: keras.optimizers.Optimizer | Sequence[keras.optimizers.Optimizer] | None = None,
    steps: int | None = None,
    compile: bool = False,
    verbose: int = 1,
    **options: Any,
) -> AcceleratedStep:
    """Makes a custom training loop faster, or leaves it as it was.

    It does on the calls of a loop what `AccelCallback` does in `fit` (docs/choice.md). Steps are
    judged by what they return: of a dict, the items with the name of a loss; else all
    floating-point scalars. docs/loops.md has examples, and says which loops are left alone.

    Args:
        step: a `tf.function` (or, with `compile=True`, a plain function) that trains on one
            batch: any arguments, tensors and structures of them. It calls no `tf.function` of
            its own, which would keep its own trace. Or a compiled model, whose
            `train_on_batch` is to be accelerated; the model and optimizer are then its own.
        plan: as in `AccelCallback`.
        model: the model that `step` trains, or all of them in a list.
        optimizer: the optimizer that it applies, or all in a list; None for updates by hand.
        steps: how many calls there will be in all. None: at any time as many are expected to
            follow as were made so far.
        compile: whether a plain function may be compiled, whose Python code then runs once.
        verbose: as in `AccelCallback`.
        options: the other arguments of `AccelCallback`, by name: `includes`, `excludes`,
            `tolerance`, `tuning`, `reproducible`, `tuning_share`, `max_tuning_seconds`,
            `cache_dir`, `guard`, `clock`.

    Returns:
        A function to call in place of `step`, with a `plan`, a `report` and a `finish()`. For a
        model it stands for `model.train_on_batch` and has `train_on_batch`, `test_on_batch` and
        `predict_on_batch`, none of which is traced anew for each size of batch.

    Raises:
        RuntimeError: Keras does not run on the TensorFlow backend.
        TypeError, ValueError: an argument breaks its rule; the message names it.
    """
    unknown = sorted({*options} - {*inspect.signature(make_options).parameters})
    if unknown:
        raise TypeError(f"accelerate_step() has no argument `{unknown[0]}`")
    settings = make_options(plan, **options)
    steps = None if steps is None else positive("steps", steps)
    if isinstance(step, keras.Model):
        _check_alone(step, model=model, optimizer=optimizer, compile=compile or None)
        return AcceleratedBatches(step, settings, steps, verbose)
    return _of_function(step, settings, model, optimizer, steps, compile, verbose)


def _check_alone(step: keras.Model, **others: Any) -> None:
    for name, value in others.items():
        if value is not None:
            raise TypeError(
                f"`{name}` is for a step that is a function; a model has its own. "
                f"Received: a {type(step).__name__} as `step`, and {name}={value!r}"
            )
    if not step.compiled:
        raise ValueError("`step`, if a model, must be compiled: call model.compile first.")


def _of_function(
    step: Any,
    settings: Options,
    model: Any,
    optimizer: Any,
    steps: int | None,
    compile: bool,
    verbose: int,
) -> AcceleratedStep:
    if not callable(step):
        raise TypeError(
            "`step` must be a function that trains on one batch, or a compiled keras.Model. "
            f"Received: {step!r} (of type {type(step).__name__})"
        )
    if not isinstance(compile, bool):
        raise TypeError(f"`compile` must be True or False. Received: {compile!r}")
    is_compiled = isinstance(step, tf.types.experimental.PolymorphicFunction)
    if compile and not is_compiled:
        step, is_compiled = tf.function(step, reduce_retracing=True), True
    return AcceleratedStep(
        Stepper(
            models=as_models(model),
            optimizers=as_optimizers(optimizer),
            function=LoopFunction(step) if is_compiled else None,
            original=step,
            settings=settings,
            steps=steps,
            verbose=verbose,
            note="" if is_compiled else _PLAIN,
        )
    )
