"""Trials of training steps: timed on kept batches, compared gradient by gradient."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from tfaccel.autotune.comparison import faithfulness
from tfaccel.autotune.comparison.faithfulness import Violation, Yardsticks
from tfaccel.autotune.comparison.step_recorder import StepRecorder
from tfaccel.autotune.comparison.traced_observer import TracedObserver
from tfaccel.autotune.trial import Trial, coarsest_dtype, rounded_dtype
from tfaccel.autotune.trial_runner import TrialRunner
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import Prepared
from tfaccel.core.workload import Workload
from tfaccel.measure import numerics
from tfaccel.measure.numerics import SIXTEEN_BITS, Drift, Observation, Tolerance
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Clock
from tfaccel.passes import PASSES
from tfaccel.steps.compiled_step import BuiltStep, StepFunction, build_step
from tfaccel.steps.replay import kept
from tfaccel.steps.worker_agreement import WorkerAgreement

# Steps in one call that are compared with the same in a call each. More would show how a
# training amplifies rounding, where a device adds in another order each time.
_COMPARED_STEPS = 2
# The cost of comparing traced steps, in steps of the original: four of its own, one of the plan's,
# and as long again for the copies of the state.
_OBSERVED_STEPS = 10


class _Side:
    """Observations of the untouched step by one observer, each made once."""

    def __init__(self, observer: StepRecorder | TracedObserver):
        self.observer = observer
        self._nears: dict[tuple[str | None, bool], Observation] = {}

    @functools.cached_property
    def reference(self) -> Observation:
        """The untouched step."""
        return self.observer.observe(Plan())

    @property
    def has_reference(self) -> bool:
        """Whether the untouched step was looked at."""
        return "reference" in vars(self)

    def near(self, dtype: str | None, moved: bool = False) -> Observation:
        """The untouched step with roundings as in `dtype`; None for those of its own dtypes."""
        if (dtype, moved) not in self._nears:
            self._nears[dtype, moved] = self.observer.near(dtype, moved).lightened()
        return self._nears[dtype, moved]

    @functools.cached_property
    def other(self) -> Observation | None:
        """The untouched step on another batch; None where none was kept."""
        other = self.observer.other()
        return other and other.lightened()

    def yardsticks(self, dtype: str, rounded: str | None) -> Iterator[Yardsticks]:
        """Yardsticks with more and more observations, each of which costs a step.

        A bound only grows with them, so a plan that keeps the first keeps all.

        Args:
            dtype: the least precise one of what is compared.
            rounded: the dtype that a plan rounds to; None where it rounds to none.
        """
        found = Yardsticks(dtype=dtype)
        yield found
        found = dataclasses.replace(found, nears=(self.near(rounded),))
        yield found
        found = dataclasses.replace(found, other=self.other)
        yield found
        if rounded is not None:
            moved = self.near(rounded, moved=True)
            yield dataclasses.replace(found, nears=(*found.nears, moved))


class TrainingTrials(TrialRunner):
    """A training workload set up for trials: its baseline step, its state, its clock.

    On leaving, the state is what it was on entering, bit for bit, however the block ends.

    Args:
        workload: with at least one kept batch.
        baseline: the user's own step function, traced already.
        clock: seconds, such as `time.perf_counter`.
        tolerance: the user's; None for the table's.
        consensus: of the processes that train together; None for one alone. `clock` must
            be its.
        prepared: where what passes find out is kept.
        thorough: whether a plan with a 16-bit pass is compared in float32, too, without it,
            where all other passes are built in: those are compared with plain float32
            references by tfaccel's own tests. Other passes always are.
    """

    def __init__(
        self,
        workload: Workload,
        baseline: StepFunction,
        clock: Clock,
        tolerance: Tolerance | float | None = None,
        agreement: WorkerAgreement | None = None,
        prepared: Prepared | None = None,
        thorough: bool = True,
    ):
        super().__init__(workload, clock, agreement, prepared)
        self._tolerance = tolerance
        self._dataset = kept(
            workload.batches, workload.element_spec, workload.strategy, forever=True
        )
        self._own = baseline
        self._own_iterator = iter(self._dataset)
        self._iterator = self._own_iterator
        self._probe = StepRecorder(workload, self._snapshot, self.prepared)
        self._recorded = _Side(self._probe)
        self._traced_observer = TracedObserver(workload, self._snapshot, self._step)
        self._traced = _Side(self._traced_observer)
        self._thorough = thorough
        self._verdicts: dict[Plan, tuple[Drift, str | None]] = {}

    def _step(self, plan: Plan) -> StepFunction:
        return self._own if plan.is_baseline else self._functions[plan]

    def _build(self, plan: Plan) -> BuiltStep:
        return build_step(
            self.workload,
            plan,
            on_trace=self._snapshot.include_graph,
            holds=True,
            prepared=self.prepared,
        )

    def _first(self, plan: Plan) -> Callable[[], Any]:
        # One for each trial: a step that fails may leave replicas at different batches.
        self._iterator = iter(self._dataset)
        return functools.partial(self._functions[plan], self._iterator)

    def calls(self, plan: Plan, count: int) -> Callable[[], Any]:
        """Makes so many steps under a plan in one call, and hands out their logs."""
        return functools.partial(self._functions[plan].run, self._iterator, count)

    def _judging_seconds(self, trial: Trial) -> float:
        """Seconds of tracing both steps once more, where the traced ones do not suffice."""
        if not trial.plan.changes_step:
            return 0.0
        if self._traced_observer.serves(trial.plan) and not self._has_twin(trial.plan):
            return _OBSERVED_STEPS * self.workload.step_seconds
        first = max(self.workload.first_step_seconds, self.workload.trace_seconds)
        return trial.compile_seconds + (0.0 if self._recorded.has_reference else first)

    def own_calls(self, count: int) -> Callable[[], Any]:
        """As many of the user's own steps, each called from Python as Keras does."""

        def call() -> Any:
            for _ in range(count):
                logs = self._own(self._own_iterator)
            return logs

        return call

    def _judged(self, trial: Trial) -> Trial:
        """The trial with its drift, and UNFAITHFUL where that is too large."""
        plan, drift, violation = trial.plan, None, None
        if plan.steps_per_call > 1:
            dtype = coarsest_dtype(plan, self.workload)
            tolerance = numerics.as_tolerance(self._tolerance, dtype)
            drift, violation = self._compared_calls(plan, tolerance)
        if plan.changes_step and not violation:
            drift, violation = self.compared(plan)
        outcome = Outcome.UNFAITHFUL if violation else Outcome.FASTER
        return dataclasses.replace(trial, outcome=outcome, reason=violation or "", drift=drift)

    def compared(self, plan: Plan) -> tuple[Drift, str | None]:
        """How far a step under a plan is from the untouched one, and whether that is too far.

        16 bits may hide a mistake of another pass, so the other passes are compared in float32.

        Returns:
            The drift, `drift.worst` the variable at fault where it is known, and the bound that
            is broken, in words; None where all hold.
        """
        drift, violation = self._compared(plan)
        if violation is None and self._has_twin(plan):
            others = plan.without_16_bits(self.workload)
            _, violation = self._compared(others)
            if violation is not None:
                return dataclasses.replace(drift, worst=""), f"{others} alone: {violation}"
        return drift, violation

    def _has_twin(self, plan: Plan) -> bool:
        """Whether the plan is to be compared without its 16-bit passes, too."""
        others = plan.without_16_bits(self.workload)
        trusted = not self._thorough and all(type(item) in PASSES for item in others.passes)
        return others != plan and others.changes_step and not trusted

    def _compared(self, plan: Plan) -> tuple[Drift, str | None]:
        if plan not in self._verdicts:
            self._verdicts[plan] = self._verdict(plan)
        return self._verdicts[plan]

    def _verdict(self, plan: Plan) -> tuple[Drift, str | None]:
        """Compares the traced steps where these show enough, else steps that are traced for it."""
        observer = self._traced_observer
        if plan in self._functions and observer.serves(plan):
            drift, violation = self._verdict_by(self._traced, plan)
            # A pass may draw a layer's random numbers in another order.
            if violation is None or not observer.is_random:
                return drift, violation
        return self._verdict_by(self._recorded, plan)

    def _verdict_by(self, side: "_Side", plan: Plan) -> tuple[Drift, str | None]:
        seen = side.observer.observe(plan, side.reference)
        dtype, rounded = coarsest_dtype(plan, self.workload), rounded_dtype(plan, self.workload)
        tolerance = numerics.as_tolerance(self._tolerance, dtype)
        if self._tolerance is None and dtype in SIXTEEN_BITS and rounded is None:
            tolerance = numerics.NOTICED  # the untouched step is no more exact than the plan
        drift = self.agreement.same(numerics.compare(side.reference, seen))
        violation = drift.violation(tolerance)
        if violation is None or self._tolerance is not None:
            return drift, violation
        broken: Violation | None = None
        for yardsticks in side.yardsticks(dtype, rounded):
            found = faithfulness.violation(side.reference, seen, tolerance, yardsticks, drift)
            broken = self.agreement.same(found)
            if broken is None:
                break
        if broken is None:
            return drift, None
        return dataclasses.replace(drift, worst=broken.where), str(broken)

    def _compared_calls(self, plan: Plan, tolerance: Tolerance) -> tuple[Drift, str | None]:
        """How far steps in one call are from the same in a call each, and whether that is too far.

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
