"""accelerate_step: a training loop of the user's own, as fast as the hardware allows."""

import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.autotune.options import Options, make_options
from tfaccel.core.plan import Pass, Plan
from tfaccel.loops.accelerated_step import AcceleratedStep, Stepper
from tfaccel.loops.arguments import as_models, as_optimizers
from tfaccel.loops.on_batch import AcceleratedBatches
from tfaccel.measure.numerics import Tolerance
from tfaccel.measure.timing import Clock
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
    includes: Collection[str] | None = None,
    excludes: Collection[str] = (),
    tolerance: Tolerance | float | None = None,
    tuning: str | None = None,
    reproducible: bool = False,
    tuning_share: float | None = 0.3,
    max_tuning_seconds: float = 120.0,
    cache_dir: str | os.PathLike[str] | bool | None = None,
    guard: bool = True,
    verbose: int = 1,
    clock: Clock = time.perf_counter,
) -> AcceleratedStep:
    """Makes a custom training loop as fast as the hardware allows, or leaves it as it was.

    What `AccelCallback` does in `fit`, for a function that trains on the batch that it is
    called with. The first calls run it as it is, and give the times to beat. A plan that is
    expected to save more than it costs is traced, and compared with the function itself on the
    same batch from the same state: what is returned, gradients, updates, and whatever variables
    the function assigns. If it is faithful the two take turns on the calls that the loop makes,
    and the faster goes on. Each batch is trained on once.

    What is returned tells how a step went: of a dict, the items that are called a loss; else all
    floating-point scalars. The guard looks at these after each step; where nothing is returned,
    nothing can be seen.

    Args:
        step: a `tf.function` (or, with `compile=True`, a plain function) that trains on one
            batch: any number of positional and named arguments, tensors and structures of them.
            What it calls must be no `tf.function` of its own: that keeps its own trace.
            Or a compiled model, whose `train_on_batch` is to be accelerated.
        plan: as in `AccelCallback`.
        model: the model that `step` trains, or all of them in a list. Not with a model as `step`,
            nor are the next one and `compile`.
        optimizer: the optimizer that it applies, or all of them in a list; None where it updates
            weights by hand. They need not be built.
        steps: how many calls there will be in all, so that it is known what a search may cost.
            None where unknown: then as many calls are taken to follow as were made, and at each
            doubling it is asked again whether a search pays.
        compile: whether a plain function may be compiled. Python code runs only while a function
            is compiled, so one that counts, prints or appends by itself must not be.
        includes, excludes, tolerance, tuning, reproducible, tuning_share, max_tuning_seconds,
        cache_dir, guard, verbose, clock: as in `AccelCallback`.

    Returns:
        What to call in place of `step`. It has a `plan`, a `report` and a `finish()`. For a model:
        what to call in place of `model.train_on_batch`, with the methods `train_on_batch`,
        `test_on_batch` and `predict_on_batch`, none of which is traced anew for each size of batch.

    Raises:
        RuntimeError: Keras does not run on the TensorFlow backend.
        TypeError, ValueError: an argument breaks its rule; the message names it.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> optimizer = keras.optimizers.SGD(0.1)
    >>> @tf.function
    ... def train_step(x, y):
    ...     with tf.GradientTape() as tape:
    ...         loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
    ...     optimizer.apply(tape.gradient(loss, model.trainable_variables),
    ...                     model.trainable_variables)
    ...     return {"loss": loss}
    >>> step = tfaccel.accelerate_step(train_step, model=model, optimizer=optimizer, verbose=0)
    >>> x, y = tf.ones((8, 4)), tf.ones((8, 1))
    >>> losses = [float(step(x, y)["loss"]) for _ in range(4)]
    >>> step.plan.is_baseline  # four steps are too few to pay for a trial
    True
    """
    settings = make_options(
        plan,
        includes=includes,
        excludes=excludes,
        tolerance=tolerance,
        tuning_share=tuning_share,
        max_tuning_seconds=max_tuning_seconds,
        cache_dir=cache_dir,
        guard=guard,
        clock=clock,
        tuning=tuning,
        reproducible=reproducible,
    )
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
