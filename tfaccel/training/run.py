"""The plan that a fit runs: its guarded step, its validation, and what later fits keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tfaccel.autotune.options import Options
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.measure.timing import Clock
from tfaccel.steps.compiled_step import BuiltStep
from tfaccel.steps.remembered import Memory, TracedStep
from tfaccel.steps.snapshot import build_used_optimizer
from tfaccel.steps.worker_agreement import WorkerAgreement
from tfaccel.system.later import later
from tfaccel.training.observed import Observed
from tfaccel.training.progress import Progress
from tfaccel.training.step_dispatcher import StepDispatcher

TYPE_CHECKING = False  # see tfaccel/system/later.py
if TYPE_CHECKING:
    from tfaccel.autotune import explicit_plan
    from tfaccel.training import guarded_step
    from tfaccel.training import validation as validations
else:
    explicit_plan = later("tfaccel.autotune.explicit_plan")
    guarded_step = later("tfaccel.training.guarded_step")
    validations = later("tfaccel.training.validation")


@dataclasses.dataclass(kw_only=True)
class PlanRun:
    """Starts plans, one at a time, and takes them back.

    Attributes:
        settings: what the user asked for.
        observed: what the steps have shown.
        memory: what fits of the compiled model leave to each other.
        progress: of the fit.
        dispatcher: runs the plan's step in Keras's place.
        clock: seconds, the same in all processes.
        agreement: of the processes that train together.
        on_abandon: called with the reason when a plan failed and its last good state is back.
        on_many_sizes: called where a plan that the user gave compiles for ever more sizes.
        on_wait: called with the seconds that preparing validation took.
        plan: that runs; `Plan()` for the original step.
        step: the guarded step; None where no plan runs.
        validation: stands in for the test function; None where that is left alone.
    """

    settings: Options
    observed: Observed
    memory: Memory
    progress: Progress
    dispatcher: StepDispatcher
    clock: Clock
    agreement: WorkerAgreement
    on_abandon: Callable[[str], None]
    on_many_sizes: Callable[[], None]
    on_wait: Callable[[float], None]
    plan: Plan = dataclasses.field(default_factory=Plan, init=False)
    step: guarded_step.GuardedStep | None = dataclasses.field(default=None, init=False)
    validation: validations.Validation | None = dataclasses.field(default=None, init=False)
    _workload: Workload | None = dataclasses.field(default=None, init=False)

    @property
    def workload(self) -> Workload | None:
        """The workload that the plan was started for, without batches; None before."""
        return self._workload

    @property
    def holds_state(self) -> bool:
        """Whether a copy of the state is kept, to go back to."""
        return self.step is not None and self.step.holds_state

    def start(
        self, plan: Plan, workload: Workload, traced: BuiltStep | None, hoped_gain: float
    ) -> bool:
        """Runs a plan from now on; False where no pass of it can run.

        Args:
            plan: whose passes all serve.
            workload: with kept batches, where there are any.
            traced: its step, if trials or another fit have traced it.
            hoped_gain: the speedup that is assumed in validation.
        """
        if traced is None:
            traced = self._remembered(plan)
        if traced is None:
            deadline = self.clock() + self.settings.budget.max_seconds
            context = StepContext(workload, prepared=self.observed.prepared)
            plan = explicit_plan.prepared(plan, context, self.clock, deadline)
            if plan.is_baseline:
                return False
        if traced is not None and traced.held is not None and workload.batches:
            traced.held.widen(workload.batches[0])
        build_used_optimizer(workload.model)
        self.install(plan, self.guarded(plan, workload, traced), workload)
        self.settle(hoped_gain)
        return True

    def install(self, plan: Plan, step: guarded_step.GuardedStep, workload: Workload) -> None:
        """This step is the plan's from now on."""
        self.plan, self.step, self._workload = plan, step, workload.without_data()
        self.dispatcher.plan, self.dispatcher.built = plan, step.function

    def settle(self, hoped_gain: float) -> None:
        """The plan stays: no data is held for others any longer, and validation runs under it.

        Args:
            hoped_gain: the speedup that is assumed in validation.
        """
        self.observed.forget_batches()
        workload = self._workload
        if workload is not None and validations.serves_validation(self.plan, workload):
            self._accelerate_validation(workload, hoped_gain)

    def _remembered(self, plan: Plan) -> BuiltStep | None:
        """The step that an earlier fit has traced; what its passes found is known here, too."""
        known = self.memory.step(plan, self.observed.element_spec)
        if known is None:
            return None
        self.observed.prepared.update(known.prepared)
        return known.built

    def guarded(
        self, plan: Plan, workload: Workload, traced: BuiltStep | None
    ) -> guarded_step.GuardedStep:
        """A plan's step with the way back to the original.

        Args:
            plan: whose passes are ready.
            workload: what it is for.
            traced: its step, if it was traced.
        """
        return guarded_step.GuardedStep(
            workload.without_data(),
            plan,
            traced,
            self.dispatcher.run_own,
            self.clock,
            self.settings.guard,
            self.on_abandon,
            self.agreement,
            lambda: self.progress.room,
            self.observed.not_finite,
            None if self.settings.plan is None else self.on_many_sizes,
            self.observed.prepared,
            self.dispatcher.note,
            self.dispatcher.taken,
        )

    def _accelerate_validation(self, workload: Workload, gain: float) -> None:
        tolerance, clock = self.settings.tolerance, self.clock
        found = self.observed.prepared
        self.validation = validations.Validation(
            workload, self.plan, gain, tolerance, clock, self.on_wait, found
        )
        self.validation.install()

    def begin_epoch(self) -> None:
        """An epoch begins."""
        if self.step is not None:
            self.step.begin_epoch()

    def begin_validation(self) -> None:
        """A validation begins."""
        if self.validation is not None:
            self.validation.begin(self.progress.epochs_left)

    def end_validation(self) -> None:
        """The test function is the user's own again."""
        if self.validation is not None:
            self.validation.remove()

    def drop(self) -> None:
        """The plan runs no longer, and is not used again if it failed."""
        self.end_validation()
        self.plan, self.step, self.validation = Plan(), None, None

    def forget_failed(self) -> None:
        """The plan failed: no later fit goes on with its step."""
        self.memory.drop(self.plan, self.observed.element_spec)

    def finish(self) -> None:
        """The fit has ended: its step stays for the next, but no copy of its state."""
        step, workload = self.step, self._workload
        if step is None or workload is None:
            return
        if step.has_run:
            spec = self.observed.element_spec
            found = self.observed.prepared
            self.memory.keep(TracedStep(self.plan, spec, step.function, found))
        step.release()
