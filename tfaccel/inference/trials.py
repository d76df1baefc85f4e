"""Trials of predictions: timed on one batch, compared output by output."""

import collections
import contextlib
import dataclasses
import functools
import operator
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.autotune.comparison.perturb import move, round_once, round_otherwise
from tfaccel.autotune.report import Report
from tfaccel.autotune.trial import Trial, coarsest_dtype
from tfaccel.autotune.trial_runner import TrialRunner
from tfaccel.core.plan import Plan
from tfaccel.core.workload import Workload
from tfaccel.inference.engines import (
    EIGHT_BITS,
    EngineFunction,
    Forward,
    ServedFunction,
    WordsFunction,
    engine_of,
    has_words,
)
from tfaccel.inference.predict_function import PredictFunction
from tfaccel.inference.quality import Quality
from tfaccel.inference.sample import changed, sample_size
from tfaccel.measure import numerics, racing
from tfaccel.measure.finite import finite_where
from tfaccel.measure.numerics import Drift, Tolerance
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Clock, percentiles
from tfaccel.system.memory import Peak, meter_for

Outputs = dict[str, np.ndarray]
_FLOATS = "fcV"  # V: bfloat16 and its kin
# How far the sum of an output's last axis may be from 1, by 16 bits, for it to be probabilities.
_PROBABILITY = 2e-2
# How many times the error that 16-bit weights alone cause a plan's may be in 16 bits, and the
# largest error in any case. ResNet50 and MobileNetV2 with random weights: 0.08 and 0.10 by their
# weights, 1.1 to 1.2 times that under Keras's policy and by OpenVINO.
_LIKELY, _MOST_IN_16_BITS = 2.0, 0.2
# Calls by which latency is measured, and the most seconds that they may take.
_CALLS, _CALLS_SECONDS = 100, 4.0


class PredictionTrials(TrialRunner):
    """A batch to predict, set up for trials.

    Plans are compared with the model's own function on the batch and on a changed one. On
    leaving, the model's state is what it was on entering, bit for bit.

    Args:
        workload: with the only batch as Keras hands it over.
        own: Keras's own predict function, traced already.
        clock: seconds.
        tolerance: the user's; None for the table's.
        cache: the folder of engines' compiled models; None for none.
        quality: the user's labelled samples; None for none.

    Raises:
        ValueError: the user's metric can't be computed of the model's own predictions.
    """

    def __init__(
        self,
        workload: Workload,
        own: Callable[[Any], Any],
        clock: Clock,
        tolerance: Tolerance | float | None = None,
        cache: pathlib.Path | None = None,
        quality: Quality | None = None,
    ):
        super().__init__(workload, clock)
        self._own = own
        self._tolerance = tolerance
        self._cache, self._quality = cache, quality
        self._data = list(workload.batches)
        self._forwards: dict[Plan, Forward] = {}
        self._sensitivities: dict[str, float] = {}
        self._seconds: dict[Plan, list[float]] = collections.defaultdict(list)
        self._own_metric = self._metric(own)

    def drift(self, plan: Plan) -> Drift:
        """How far a plan's outputs are from the model's own, at most."""
        return worst(compare(ref, found) for ref, found in self._pairs(plan))

    def _pairs(self, plan: Plan) -> Iterator[tuple[Outputs, Outputs]]:
        """Pairs of the model's own outputs and a plan's, for each batch and each way to predict."""
        function = self.step_function(plan)
        other_sizes = getattr(function, "any_size", None)
        for run in filter(None, (function, other_sizes)):
            for data, reference in self._references:
                yield reference, self._run(run, data)

    def violation(self, plan: Plan, drift: Drift) -> str | None:
        """Which bound a plan breaks, in words; None where it keeps them all."""
        dtype = coarsest_dtype(plan, self.workload)
        tolerance = numerics.as_tolerance(self._tolerance, dtype)
        if self._tolerance is None and drift.violation(tolerance):
            tolerance = numerics.widened(tolerance, self._own_drift)
            if dtype in numerics.SIXTEEN_BITS and drift.violation(tolerance):
                room = min(_LIKELY * self._sensitivity(dtype), _MOST_IN_16_BITS)
                tolerance = dataclasses.replace(tolerance, output=max(tolerance.output, room))
        return drift.violation(tolerance)

    @functools.cached_property
    def _references(self) -> list[tuple[Any, Outputs]]:
        """Batches, and what the model's own function predicts."""
        found = [(self._data, self._run(self._own, self._data))]
        other = [changed(batch) for batch in self._data]
        # The user's own code may refuse a changed sample, which is no real one.
        with contextlib.suppress(tf.errors.OpError, ValueError, TypeError):
            found.append((other, self._run(self._own, other)))
        return found

    @functools.cached_property
    def _own_drift(self) -> Drift:
        """How far the model's own outputs are from themselves with weights rounded otherwise."""
        return self._drift_after(round_otherwise, self.workload.layers)

    def _sensitivity(self, dtype: str) -> float:
        """How far the model's own outputs are from themselves with weights rounded to 16 bits."""
        if dtype not in self._sensitivities:
            drifts = [self._drift_after(change, dtype) for change in (round_once, move)]
            self._sensitivities[dtype] = worst(drifts).output
        return self._sensitivities[dtype]

    def _drift_after(self, change: Callable[[list[Any], Any], None], by: Any) -> Drift:
        """How far the model's own outputs are from themselves once its weights are changed."""
        references = self._references  # before any weight is changed
        with self._restored():
            change(self.workload.model.trainable_variables, by)
            return worst(compare(right, _outputs(self._own(data))) for data, right in references)

    def _run(self, function: Callable[[Any], Any], data: Any) -> Outputs:
        with self._restored():
            return _outputs(function(data))

    def _build(self, plan: Plan) -> PredictFunction | ServedFunction:
        if engine_of(plan) is None:
            return PredictFunction(self.workload, plan, self.prepared)
        kind = WordsFunction if has_words(self.workload.element_spec) else EngineFunction
        return kind(
            self.workload,
            plan,
            self.prepared,
            cache=self._cache,
            forwards=self._forwards,
            quality=self._quality,
        )

    def _metric(self, function: Callable[[Any], Any]) -> float | None:
        """The user's metric of what a function predicts; None without labels."""
        if self._quality is None:
            return None
        parts = []
        with self._restored():
            for x, new in self._quality.batches(sample_size(self._data) or 1):
                arrays = keras.tree.map_structure(np.asarray, function([(x,)]))
                rows = operator.itemgetter(slice(-new, None))
                parts.append(keras.tree.map_structure(rows, arrays))
        joined = keras.tree.map_structure(lambda *ys: np.concatenate(ys), *parts)
        return self._quality.score(joined)

    def _first(self, plan: Plan) -> Callable[[], Any]:
        return functools.partial(self._functions[plan], self._data)

    def calls(self, plan: Plan, count: int) -> Callable[[], Any]:
        return self._first(plan)

    def own_calls(self, count: int) -> Callable[[], Any]:
        return lambda: [self._own(self._data) for _ in range(count)][-1]

    def race(
        self, plan: Plan, deadline: float, fewest: int = 0, step_seconds: float = 0.0
    ) -> racing.Race:
        race = super().race(plan, deadline, fewest, step_seconds)
        self._seconds[Plan()] += race.baseline_seconds
        self._seconds[plan] += race.candidate_seconds
        return race

    @contextlib.contextmanager
    def _peak_memory(self) -> Iterator[Callable[[], int | None]]:
        """On a CPU the growth of the process, as engines don't use TensorFlow's allocator."""
        with contextlib.ExitStack() as measuring:
            try:
                peak = measuring.enter_context(meter_for(self.workload.device).measured())
            except OSError:  # this system doesn't tell
                peak = Peak()
            yield lambda: peak.bytes

    def time_calls(self, plan: Plan) -> None:
        """Times calls of the model's own function and of a plan in turns."""
        calls = {Plan(): self.own_calls(1)}
        if not plan.is_baseline:
            calls[plan] = self._first(plan)
        end = self.clock() + _CALLS_SECONDS
        with self._restored():
            for _ in range(_CALLS):
                for side, call in calls.items():
                    self._seconds[side].append(self._timed(call))
                if self.clock() > end:
                    break

    def completed(self, report: Report) -> Report:
        """The report with the baseline's metric, and the percentiles of all calls of each plan."""
        trials = []
        for trial in report.trials:
            seconds = self._seconds.get(trial.plan)
            found = percentiles(seconds) if seconds else trial.latency_seconds
            metric = self._own_metric if trial.plan.is_baseline else trial.metric
            trials.append(dataclasses.replace(trial, latency_seconds=found, metric=metric))
        return dataclasses.replace(report, trials=tuple(trials))

    def _judged(self, trial: Trial) -> Trial:
        pairs = list(self._pairs(trial.plan))
        drift = worst(compare(*pair) for pair in pairs)
        metric = self._metric(self.step_function(trial.plan))
        violation = self._lost(trial.plan, drift, metric)
        outcome = Outcome.UNFAITHFUL if violation else Outcome.FASTER
        return dataclasses.replace(
            trial,
            outcome=outcome,
            reason=violation or "",
            drift=drift,
            top1_agreement=top1_agreement(pairs),
            metric=metric,
        )

    def _lost(self, plan: Plan, drift: Drift, metric: float | None) -> str | None:
        """What a plan loses too much of, in words: the metric in 8 bits, else precision."""
        engine = engine_of(plan)
        if engine is None or engine.precision != EIGHT_BITS or not drift.finite:
            return self.violation(plan, drift)
        if self._quality is None or self._own_metric is None or metric is None:
            return "nothing tells what 8 bits lose"
        return self._quality.violation(self._own_metric, metric)


def compare(reference: Outputs, candidate: Outputs) -> Drift:
    """The drift of outputs: the worst one's relative error.

    Values that are not floating-point (classes, words) must be the same.
    """
    errors = {name: _error(value, candidate.get(name)) for name, value in reference.items()}
    name = max(errors, key=lambda one: errors[one], default="")
    finite = all(_as_finite(value, candidate.get(key)) for key, value in reference.items())
    output = errors.get(name, 0.0) if len(reference) == len(candidate) else float("inf")
    return Drift(output=output, finite=finite, worst=name if output else "")


def top1_agreement(pairs: Iterable[tuple[Outputs, Outputs]]) -> float | None:
    """The share of samples with the same class on both sides; None without probabilities.

    An output holds probabilities where its last axis sums to 1 and nothing is negative.
    """
    same: list[np.ndarray] = []
    for reference, candidate in pairs:
        for name, value in reference.items():
            other = candidate.get(name)
            if other is not None and _alike(value, other) and _is_probability(value):
                same.append(np.ravel(value.argmax(-1) == other.argmax(-1)))
    return float(np.mean(np.concatenate(same))) if same else None


def _is_probability(value: np.ndarray) -> bool:
    if value.dtype.kind not in "fV" or value.ndim < 2 or value.shape[-1] < 2:
        return False
    values = value.astype(np.float64)
    return bool(np.all(values >= 0) and np.all(np.abs(values.sum(-1) - 1) <= _PROBABILITY))


def worst(drifts: Iterable[Drift]) -> Drift:
    """The largest of several drifts."""
    found = list(drifts)
    largest = max(found, key=lambda drift: drift.output)
    return dataclasses.replace(largest, finite=all(drift.finite for drift in found))


def _alike(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype


def _as_finite(reference: np.ndarray, candidate: np.ndarray | None) -> bool:
    """Whether the candidate is finite wherever the reference is."""
    if candidate is None or not _alike(reference, candidate):
        return True
    if reference.dtype.kind not in _FLOATS:
        return True
    return finite_where(reference, candidate)


def _error(reference: np.ndarray, candidate: np.ndarray | None) -> float:
    if candidate is None or not _alike(reference, candidate):
        return float("inf")
    if reference.dtype.kind in _FLOATS:
        return numerics.relative_error(reference, candidate)
    return 0.0 if np.array_equal(reference, candidate) else float("inf")


def _outputs(structure: Any) -> Outputs:
    """Every output as an array, by its place in the structure."""
    found = {}
    for path, leaf in keras.tree.flatten_with_path(structure):
        name = "output" + "".join(f"[{step!r}]" for step in path)
        for index, part in enumerate(tf.nest.flatten(leaf, expand_composites=True)):
            found[f"{name}.{index}" if index else name] = np.asarray(part)
    return found
