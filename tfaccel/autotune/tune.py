"""tune: choosing a plan without training."""

import os
from collections.abc import Collection, Sequence

import keras
import tensorflow as tf

from tfaccel.autotune.eligibility import ineligibility
from tfaccel.autotune.fallback_plan import fallback, fallbacks
from tfaccel.autotune.offline import offline_trials
from tfaccel.autotune.options import Options, make_options
from tfaccel.autotune.report import Report, show
from tfaccel.autotune.search import one_plan
from tfaccel.autotune.tune_and_cache import tune_and_cache
from tfaccel.core.plan import Pass, Plan
from tfaccel.core.workload import Workload
from tfaccel.measure.numerics import Tolerance
from tfaccel.steps.repeatable import CannotRepeatError


def tune(
    model: keras.Model,
    dataset: tf.data.Dataset,
    plan: Plan | Sequence[str | Pass] | str | os.PathLike[str] = "auto",
    *,
    includes: Collection[str] | None = None,
    excludes: Collection[str] = (),
    tolerance: Tolerance | float | None = None,
    tuning_share: float | None = None,
    max_tuning_seconds: float = 120.0,
    cache_dir: str | os.PathLike[str] | bool | None = None,
    verbose: int = 1,
) -> Report:
    """Finds the fastest faithful plan for a model and a dataset, and trains nothing.

    Weights, optimizer and metrics are afterwards what they were. What wins is kept
    in the cache, so that `AccelCallback` finds it, and can be saved with
    `report.plan.save("plan.json")`. A search that ran out of time before a plan won is
    not kept.

    Args:
        model: a compiled model.
        dataset: batches `(x, y)` or `(x, y, sample_weight)`, as for `fit`. The first
            few are used.
        plan: `"auto"`, or one plan to measure against the model's own step.
        includes, excludes, tolerance, max_tuning_seconds, cache_dir, verbose: as in
            `AccelCallback`.
        tuning_share: None, as there is no training to take a share of.

    Returns:
        The report. Where the model's own step can't run here (channels_first images on
        a CPU) its plan is the one under which it does, and its `note` says why.

    Raises:
        TypeError: `dataset` is not a tf.data.Dataset.
        ValueError: the model is not compiled, or the dataset is empty.

    >>> model = keras.Sequential([keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> data = tf.data.Dataset.from_tensors((tf.ones((32, 4)), tf.ones((32, 1)))).repeat(4)
    >>> report = tfaccel.tune(model, data, includes=["xla"], cache_dir=False, verbose=0)
    >>> report.trials[0].outcome.value
    'baseline'
    """
    settings = make_options(
        plan,
        includes=includes,
        excludes=excludes,
        tolerance=tolerance,
        tuning_share=tuning_share,
        max_tuning_seconds=max_tuning_seconds,
        cache_dir=cache_dir,
    )
    _check(model, dataset)
    stopped = ineligibility(model)
    report = Report((), Plan(), note=stopped) if stopped else _report(model, dataset, settings)
    if verbose:
        show(report)
    return report


def _check(model: keras.Model, dataset: tf.data.Dataset) -> None:
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(
            "`dataset` must be a tf.data.Dataset of batches; for arrays: "
            "tf.data.Dataset.from_tensor_slices((x, y)).batch(32). "
            f"Received: {type(dataset).__name__}"
        )
    if not getattr(model, "compiled", False):
        raise ValueError("`model` must be compiled: call model.compile(optimizer, loss) first.")


def _report(model: keras.Model, dataset: tf.data.Dataset, settings: Options) -> Report:
    """The report of tuning; where the model's own step can't run, of a plan that can."""
    try:
        return _tuned(model, dataset, settings)
    except CannotRepeatError as error:
        return Report((), Plan(), note=str(error))
    except tf.errors.OpError as error:
        able = fallbacks(Workload(model), settings.considered, settings.plan)
        report = fallback(able, error, settings.plan)
        if report is None:
            raise
        return report


def _tuned(model: keras.Model, dataset: tf.data.Dataset, settings: Options) -> Report:
    with offline_trials(
        model, dataset, tolerance=settings.tolerance, clock=settings.clock
    ) as bench:
        if settings.plan is not None:
            return one_plan(settings.plan, bench.workload, bench)
        return tune_and_cache(bench, settings)
