"""accelerate: the fastest faithful way to make a model's predictions."""

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel import passes
from tfaccel.autotune.fallback_plan import fallback, fallbacks
from tfaccel.autotune.options import Options, make_options
from tfaccel.autotune.report import Report, show
from tfaccel.autotune.search import one_plan
from tfaccel.autotune.trial import baseline_trial
from tfaccel.autotune.tune_and_cache import known_report, tune_and_cache
from tfaccel.compat import keras_private
from tfaccel.core.plan import Pass, Plan
from tfaccel.core.tracing import unmarked
from tfaccel.core.workload import Workload, default_strategy
from tfaccel.inference.accelerated_model import AcceleratedModel
from tfaccel.inference.engines import ENGINES
from tfaccel.inference.predict_function import PredictFunction, own_function
from tfaccel.inference.quality import Metric, Quality, asked_quality
from tfaccel.inference.sample import first_batch, first_samples, spec_of
from tfaccel.inference.trials import PredictionTrials
from tfaccel.measure.numerics import Tolerance
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Clock, timed
from tfaccel.steps.snapshot import Snapshot

# Calls of the model's own function that are timed first. The first is traced.
_OWN_CALLS = 3
# The share of the time for trials in which an engine may look for ops that 8 bits harm.
_SEARCH_SHARE = 0.25
# The aims of `optimize`.
AIMS = ("throughput", "latency")


def accelerate(
    model: keras.Model,
    sample: Any,
    plan: Plan | Sequence[str | Pass] | str | os.PathLike[str] = "auto",
    *,
    y: Any = None,
    allow: Collection[str] = (),
    max_drop: float = 0.005,
    metric: str | Metric = "accuracy",
    batch_size: int | None = None,
    optimize: str = "throughput",
    includes: Collection[str] | None = None,
    excludes: Collection[str] = (),
    tolerance: Tolerance | float | None = None,
    max_tuning_seconds: float = 120.0,
    cache_dir: str | os.PathLike[str] | bool | None = None,
    verbose: int = 1,
) -> AcceleratedModel:
    """Finds the fastest faithful way to make a model's predictions.

    Plans and installed engines take turns with Keras's own predict function on the sample, and
    their outputs are compared; where none is faster, that function is used. The model is not
    changed; one that is not built is built, as its `predict` would build it.

    Args:
        model: any Keras model, compiled or not.
        sample: inputs as `model.predict` takes them, or a dataset, whose first batch is taken.
        plan: `"auto"`, or one plan, such as that of a training, less what serves training alone.
        y: the sample's labels, for the metric's column and for `allow`.
        allow: `("int8",)` lets engines compute in 8 bits, calibrated on the sample.
        max_drop, metric: how far 8 bits may lower the metric: `"accuracy"`, or a function of
            labels and predictions whose larger values are better.
        batch_size: samples in a batch, the size that matters; None for all of the sample.
        optimize: `"throughput"`; or `"latency"`: engines give one batch all cores.
        includes, excludes: names of passes and engines to try (docs/inference.md).
        tolerance: the largest relative error of outputs; None for the dtype's own.
        max_tuning_seconds, cache_dir, verbose: as in `AccelCallback`.

    Raises:
        TypeError: `model` is not a Keras model, or `sample` is of a kind that can't be predicted.
        ValueError: `sample` is empty, or an argument breaks its rule.

    >>> model, x = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]), np.ones((32, 4))
    >>> fast = tfaccel.accelerate(model, x, max_tuning_seconds=5, cache_dir=False, verbose=0)
    >>> fast.predict(x, verbose=0).shape
    (32, 1)
    """
    settings = _settings(plan, includes, excludes, tolerance, max_tuning_seconds, cache_dir)
    x = _inputs(model, sample, optimize)
    quality = asked_quality(x, y, allow, max_drop, metric)
    wish = _Wish(optimize, tuple(allow), quality)
    found = _accelerated(model, first_samples(x, batch_size), settings, wish)
    if verbose:
        show(found.report, verbose)
    return found


@dataclasses.dataclass(frozen=True)
class _Wish:
    """The aim of the predictions, and how much accuracy they may lose."""

    optimize: str
    allow: tuple[str, ...]
    quality: Quality | None


def _inputs(model: Any, sample: Any, optimize: str) -> Any:
    """The sample's inputs, after the other arguments are checked."""
    if optimize not in AIMS:
        raise ValueError(f"`optimize` must be one of {', '.join(AIMS)}. Received: {optimize!r}")
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: {type(model).__name__}")
    return first_batch(model, sample)


def _settings(
    plan: Any,
    includes: Collection[str] | None,
    excludes: Collection[str],
    tolerance: Tolerance | float | None,
    max_tuning_seconds: float,
    cache_dir: str | os.PathLike[str] | bool | None,
) -> Options:
    """What the user asked for, less what serves training alone."""
    settings = make_options(
        plan,
        includes=includes,
        excludes=excludes,
        tolerance=tolerance,
        max_tuning_seconds=max_tuning_seconds,
        cache_dir=cache_dir,
        tuning_share=None,
    )
    names, plan = settings.names, settings.plan
    if includes is None:
        more = (item.name for item in (*passes.INFERENCE_PASSES, *ENGINES))
        names += tuple(name for name in more if name not in excludes)
    if plan is not None:
        plan = Plan(tuple(item for item in plan.passes if item.serves_validation))
    of_training = {item.name for item in passes.PASSES if not item.serves_validation}
    names = tuple(name for name in names if name not in of_training)
    return dataclasses.replace(settings, plan=plan, includes=names, may_save_memory=False)


def _accelerated(model: keras.Model, x: Any, settings: Options, wish: _Wish) -> AcceleratedModel:
    stopped = _hindrance(model)
    if stopped:
        report = Report((), Plan(), note=stopped, predicts=True)
        return AcceleratedModel(model, x, report, own_function(model), None)
    if not model.built:
        model(x)  # makes the variables, as the first batch to be predicted would
    with unmarked(model):
        return _tried(model, x, settings, wish)


def _tried(model: keras.Model, x: Any, settings: Options, wish: _Wish) -> AcceleratedModel:
    # As Keras hands it over, so that its predictions meet the trace that is made here.
    batch = keras.utils.pack_x_y_sample_weight(keras.tree.lists_to_tuples(x))
    asked: dict[str, Any] = {"optimize": wish.optimize, "allow": wish.allow}
    workload = Workload(model, (batch,), spec_of(batch), training=False, **asked)
    state = Snapshot.of(workload)
    own, function = own_function(model), None
    try:
        workload = _timed(workload, own, settings.clock)
    except tf.errors.OpError as error:
        found = _rescued(workload, error, settings)
        if found is None:
            raise
        report, function = found
    else:
        state.restore()
        with _trials(workload, own, settings, wish.quality) as bench:
            report = dataclasses.replace(_report(workload, bench, settings), predicts=True)
            if wish.optimize == "latency":
                bench.time_calls(report.plan)
            report = bench.completed(report)
            kept = not report.plan.is_baseline
            function = bench.step_function(report.plan) if kept else None
    finally:
        state.restore()
    return AcceleratedModel(model, x, report, own, function)


def _trials(
    workload: Workload, own: Callable[[Any], Any], settings: Options, quality: Quality | None
) -> PredictionTrials:
    cache = settings.cache.directory if settings.cache else None
    if quality is not None:
        seconds = _SEARCH_SHARE * settings.budget.max_seconds
        quality = dataclasses.replace(quality, seconds=seconds, clock=settings.clock)
    return PredictionTrials(workload, own, settings.clock, settings.tolerance, cache, quality)


def _hindrance(model: keras.Model) -> str:
    """Why acceleration is impossible from the start; empty where it is possible."""
    if model.run_eagerly:
        return "The model runs eagerly (run_eagerly=True), so there is nothing compiled."
    if model.distribute_strategy is not default_strategy():
        name = type(model.distribute_strategy).__name__
        return f"Predictions under {name} are left as they are."
    maker = keras_private.overridden(model, keras.Model, "make_predict_function")
    if maker is not None:
        return f"{type(model).__name__} has a {maker} of its own, so predictions are left to it."
    return ""


def _timed(workload: Workload, own: Callable[[Any], Any], clock: Clock) -> Workload:
    """The workload with the times of the model's own function."""
    call = functools.partial(own, list(workload.batches))
    first, *others = [timed(call, clock) for _ in range(_OWN_CALLS)]
    return dataclasses.replace(workload, first_step_seconds=first, step_seconds=min(others))


def _rescued(
    workload: Workload, error: Exception, settings: Options
) -> tuple[Report, PredictFunction] | None:
    """A report and a function that predicts where the model's own can't run; None without one."""
    able = fallbacks(workload, settings.considered, settings.plan)
    report = fallback(able, error, settings.plan)
    if report is None:
        return None
    report = dataclasses.replace(report, predicts=True)
    return report, PredictFunction(workload, report.plan)


def _report(workload: Workload, bench: PredictionTrials, settings: Options) -> Report:
    if settings.plan is not None and settings.plan.is_baseline:
        return Report((baseline_trial(workload),), Plan())
    if settings.plan is not None:
        return one_plan(settings.plan, workload, bench)
    known = known_report(workload, settings)
    return tune_and_cache(bench, settings) if known is None else _remembered(known, bench)


def _remembered(report: Report, bench: PredictionTrials) -> Report:
    """A report from the cache. Its plan is compared with these weights; it is not timed again."""
    note = "From the cache."
    if not report.plan.is_baseline:
        # Earlier measurements are on disk; there is no time for new ones.
        trial = bench.check(report.plan, bench.clock())
        if trial.outcome is not Outcome.FASTER:
            note = f"{report.plan} is in the cache, but does not serve now: {trial.reason}."
            return Report((baseline_trial(bench.workload), trial), Plan(), note=note)
    return dataclasses.replace(report, note=note, tuning_seconds=0.0, cached=True)
