"""Trials of predictions: timed on one batch, compared output by output."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.autotune.comparison.perturb import round_otherwise
from tfaccel.autotune.trial import Trial, coarsest_dtype
from tfaccel.autotune.trial_runner import TrialRunner
from tfaccel.core.plan import Plan
from tfaccel.core.workload import Workload
from tfaccel.inference.predict_function import PredictFunction
from tfaccel.inference.sample import changed
from tfaccel.measure import numerics
from tfaccel.measure.finite import finite_where
from tfaccel.measure.numerics import Drift, Tolerance
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Clock

Outputs = dict[str, np.ndarray]
_FLOATS = "fcV"  # V: bfloat16 and its kin


class PredictionTrials(TrialRunner):
    """A batch to predict, set up for trials.

    Plans are compared with the model's own function on the batch and on a changed one. On
    leaving, the model's state is what it was on entering, bit for bit.

    Args:
        workload: with the only batch as Keras hands it over.
        own: Keras's own predict function, traced already.
        clock: seconds.
        tolerance: the user's; None for the table's.
    """

    def __init__(
        self,
        workload: Workload,
        own: Callable[[Any], Any],
        clock: Clock,
        tolerance: Tolerance | float | None = None,
    ):
        super().__init__(workload, clock)
        self._own = own
        self._tolerance = tolerance
        self._data = list(workload.batches)

    def drift(self, plan: Plan) -> Drift:
        """How far a plan's outputs are from the model's own, at most."""
        function = self.step_function(plan)
        return worst(compare(ref, self._run(function, x)) for x, ref in self._references)

    def violation(self, plan: Plan, drift: Drift) -> str | None:
        """Which bound a plan breaks, in words; None where it keeps them all."""
        dtype = coarsest_dtype(plan, self.workload)
        tolerance = numerics.as_tolerance(self._tolerance, dtype)
        if self._tolerance is None and drift.violation(tolerance):
            tolerance = numerics.widened(tolerance, self._own_drift)
        return drift.violation(tolerance)

    @functools.cached_property
    def _references(self) -> list[tuple[Any, Outputs]]:
        """Batches, and what the model's own function predicts."""
        found = [(self._data, self._run(self._own, self._data))]
        other = [changed(batch) for batch in self._data]
        # The user's own code may refuse what is no real sample.
        with contextlib.suppress(tf.errors.OpError, ValueError, TypeError):
            found.append((other, self._run(self._own, other)))
        return found

    @functools.cached_property
    def _own_drift(self) -> Drift:
        """How far the model's own outputs are from themselves with weights rounded otherwise."""
        with self._restored():
            model = self.workload.model
            round_otherwise(model.trainable_variables, self.workload.layers)
            return worst(
                compare(reference, _outputs(self._own(data)))
                for data, reference in self._references
            )

    def _run(self, function: Callable[[Any], Any], data: Any) -> Outputs:
        with self._restored():
            return _outputs(function(data))

    def _build(self, plan: Plan) -> PredictFunction:
        return PredictFunction(self.workload, plan, self.prepared)

    def _first(self, plan: Plan) -> Callable[[], Any]:
        return functools.partial(self._functions[plan], self._data)

    def _calls(self, plan: Plan, count: int) -> Callable[[], Any]:
        return self._first(plan)

    def _own_calls(self, count: int) -> Callable[[], Any]:
        return lambda: [self._own(self._data) for _ in range(count)][-1]

    def _judged(self, trial: Trial) -> Trial:
        drift = self.drift(trial.plan)
        violation = self.violation(trial.plan, drift)
        outcome = Outcome.UNFAITHFUL if violation else Outcome.FASTER
        return dataclasses.replace(trial, outcome=outcome, reason=violation or "", drift=drift)


def compare(reference: Outputs, candidate: Outputs) -> Drift:
    """The drift of outputs: the worst one's relative error.

    What is no floating-point number (a class, a word) must be the same.
    """
    errors = {name: _error(value, candidate.get(name)) for name, value in reference.items()}
    name = max(errors, key=lambda one: errors[one], default="")
    finite = all(_as_finite(value, candidate.get(key)) for key, value in reference.items())
    output = errors.get(name, 0.0) if len(reference) == len(candidate) else float("inf")
    return Drift(output=output, finite=finite, worst=name if output else "")


def worst(drifts: Iterator[Drift]) -> Drift:
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
