"""A model set up for trials on the first batches of a dataset, without training."""

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfaccel.autotune.options import COLLECTED_STEPS
from tfaccel.autotune.training_trials import TrainingTrials
from tfaccel.compat.patching import set_attribute
from tfaccel.core.workload import Workload, shapes, sizes_vary, unattended
from tfaccel.measure.numerics import Tolerance
from tfaccel.measure.timing import Clock, timed
from tfaccel.steps.repeatable import CannotRepeatError, unrepeatable
from tfaccel.steps.replay import END_OF_DATA, feed, pull
from tfaccel.steps.snapshot import Snapshot, build_optimizer


@contextlib.contextmanager
def offline_trials(
    model: keras.Model,
    dataset: tf.data.Dataset,
    *,
    tolerance: Tolerance | float | None = None,
    clock: Clock = time.perf_counter,
    kind: type[TrainingTrials] = TrainingTrials,
) -> Iterator[TrainingTrials]:
    """Runs the model's own step a few times, and sets up trials of plans.

    On leaving, weights, optimizer, metrics and train function are what they were.

    Args:
        model: compiled.
        dataset: batches as for `fit`; the first few are used.
        tolerance: as in `AccelCallback`.
        clock: seconds.
        kind: the class of the bench.

    Yields:
        The bench, entered; its `workload` has the times of the model's own step.

    Raises:
        ValueError: the dataset is empty.
        CannotRepeatError: a part of the step can't be undone.
    """
    count = model.steps_per_execution
    iterator = iter(unattended(dataset))  # few batches are taken: no tuning
    try:
        batches = pull(iterator, COLLECTED_STEPS * count)
    except END_OF_DATA:
        raise ValueError(
            "`dataset` must hold at least one batch. Received: an empty one."
        ) from None
    _build(model, batches[0])
    state = Snapshot.of(Workload(model))
    try:
        with set_attribute(model, "train_function", None):
            model.make_train_function()
            stopped = unrepeatable(model.train_function, feed(batches[:count], iterator))
            if stopped:
                raise CannotRepeatError(stopped)
            workload = _timed_workload(model, batches, iterator, clock)
            with kind(workload, model.train_function, clock, tolerance) as bench:
                yield bench
    finally:
        state.restore()
        model.reset_metrics()


def _timed_workload(
    model: keras.Model, batches: tuple[Any, ...], iterator: tf.data.Iterator, clock: Clock
) -> Workload:
    first = batches[: model.steps_per_execution]
    feeds = [feed(first, iterator) for _ in range(COLLECTED_STEPS)]
    seconds = [timed(functools.partial(model.train_function, fed), clock) for fed in feeds]
    return Workload(
        model=model,
        batches=tuple(b for b in batches if shapes(b) == shapes(batches[0])),
        element_spec=iterator.element_spec,
        first_step_seconds=seconds[0],
        step_seconds=min(seconds[1:]),
        sizes_vary=sizes_vary([shapes(batch) for batch in batches]),
    )


def _build(model: keras.Model, batch: Any) -> None:
    """Makes every variable that a step would make, so that all can be put back."""
    if not model.built:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
        model(x)
    build_optimizer(model)
