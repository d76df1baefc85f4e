"""Trials of training steps: timed on kept batches, compared gradient by gradient."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from tfaccel import numerics
from tfaccel.consensus import Consensus
from tfaccel.feed import kept
from tfaccel.numerics import Drift, Observation, Tolerance
from tfaccel.plan import Plan
from tfaccel.probe import Probe
from tfaccel.step import BuiltStep, StepFunction, build_step
from tfaccel.timing import Clock
from tfaccel.trial import Contest, Outcome, Trial, coarsest_dtype
from tfaccel.workload import Workload

# Steps in one call that are compared with the same in a call each. More would show how a
# training amplifies rounding, where a device adds in another order each time.
_COMPARED_STEPS = 2


class Bench(Contest):
    """A training workload set up for trials: its baseline step, its state, its clock.

    On leaving, the state is what it was on entering, bit for bit, however the block ends.

    Args:
        workload: with at least one kept batch.
        baseline: the user's own step function, traced already.
        clock: seconds, such as `time.perf_counter`.
        tolerance: the user's; None for the table's.
        consensus: of the processes that train together; None for one alone. `clock` must
            be its.
    """

    def __init__(
        self,
        workload: Workload,
        baseline: StepFunction,
        clock: Clock,
        tolerance: Tolerance | float | None = None,
        consensus: Consensus | None = None,
    ):
        super().__init__(workload, clock, consensus)
        self._tolerance = tolerance
        self._dataset = kept(
            workload.batches, workload.element_spec, workload.strategy, forever=True
        )
        self._own = baseline
        self._own_iterator = iter(self._dataset)
        self._probe = Probe(workload, self._snapshot)

    @functools.cached_property
    def _reference(self) -> Observation:
        return self._probe.observe(Plan())

    def _build(self, plan: Plan) -> BuiltStep:
        return build_step(self.workload, plan, on_trace=self._snapshot.include_graph, holds=True)

    def _first(self, plan: Plan) -> Callable[[], Any]:
        return functools.partial(self._functions[plan], iter(self._dataset))

    def _calls(self, plan: Plan) -> Callable[[], Any]:
        """Makes as many steps under a plan as it runs in one call, and hands out their logs."""
        return functools.partial(
            self._functions[plan].run, iter(self._dataset), plan.steps_per_call
        )

    def _own_calls(self, count: int) -> Callable[[], Any]:
        """As many of the user's own steps, each called from Python as Keras does."""

        def call() -> Any:
            for _ in range(count):
                logs = self._own(self._own_iterator)
            return logs

        return call

    def _judged(self, trial: Trial) -> Trial:
        """The trial with its drift, and UNFAITHFUL where that is too large."""
        plan, drift, violation = trial.plan, None, None
        dtype = coarsest_dtype(plan, self.workload)
        tolerance = numerics.as_tolerance(self._tolerance, dtype)
        if plan.steps_per_call > 1:
            drift, violation = self._compared_calls(plan, tolerance)
        if plan.changes_step and not violation:
            seen = self._probe.observe(plan, self._reference)
            drift = self._consensus.same(numerics.compare(self._reference, seen))
            if self._tolerance is None and drift.violation(tolerance):
                tolerance = numerics.widened(tolerance, self._own_drift)
            violation = drift.violation(tolerance)
        outcome = Outcome.UNFAITHFUL if violation else Outcome.FASTER
        return dataclasses.replace(trial, outcome=outcome, reason=violation or "", drift=drift)

    def _compared_calls(self, plan: Plan, tolerance: Tolerance) -> tuple[Drift, str | None]:
        """How far some steps in one call are from the same in a call each, and if that is too far.

        The latter are the user's own steps, or the plan's where it computes them otherwise.
        """
        built = self._functions[plan]
        single = built if plan.changes_step else self._own

        def one_by_one() -> Any:
            iterator = iter(self._dataset)
            return [single(iterator) for _ in range(_COMPARED_STEPS)]

        def together() -> Any:
            return built.run(iter(self._dataset), _COMPARED_STEPS)

        reference = self._probe.observe_steps(one_by_one)
        drift = numerics.compare(reference, self._probe.observe_steps(together))
        if self._tolerance is None and drift.violation(tolerance):
            again = numerics.compare(reference, self._probe.observe_steps(one_by_one))
            tolerance = numerics.widened(tolerance, again)
        return drift, drift.violation(tolerance)

    @functools.cached_property
    def _own_drift(self) -> Drift:
        """How far the untouched step is from itself with other random numbers and roundings."""
        other = self._probe.observe(Plan(), self._reference, otherwise=True)
        return self._consensus.same(numerics.compare(self._reference, other))
