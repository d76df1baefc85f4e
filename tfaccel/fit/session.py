"""One `fit` under acceleration, and which function runs at each of its steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.autotune.eligibility import ineligibility, too_few
from tfaccel.autotune.options import Options
from tfaccel.autotune.report import Report
from tfaccel.compat import keras_private
from tfaccel.core.plan import Plan
from tfaccel.core.workload import Workload
from tfaccel.fit.progress import Progress
from tfaccel.steps.compiled_step import BuiltStep, StepFunction
from tfaccel.steps.letting_go import LettingGo
from tfaccel.steps.replay import is_plain
from tfaccel.steps.worker_agreement import agreement_of
from tfaccel.training.course import Course
from tfaccel.training.phases import Phase
from tfaccel.training.step_dispatcher import StepDispatcher
from tfaccel.training.steps import Steps

TYPE_CHECKING = False  # see tfaccel/system/later.py
if TYPE_CHECKING:
    from tfaccel.training.validation import Validation


class FitSession:
    """Stands in for `model.train_function` from `on_train_begin` to `on_train_end`.

    `Steps` says who runs at a step; `Course` has what changes the phase.

    Args:
        model: compiled, its train function made.
        settings: what the user asked for.
        epochs: epochs of this fit.
        batches_per_epoch: None when unknown.
        on_tuning: called with the budget in seconds before trials begin.
        on_report: called once with the report, when the choice is made.
        callbacks: those of this fit; None where they can't be seen.

    Attributes:
        model: as given.
        baseline: the original step.
    """

    def __init__(
        self,
        model: keras.Model,
        settings: Options,
        epochs: int,
        batches_per_epoch: int | None,
        on_tuning: Callable[[float], None],
        on_report: Callable[[Report], None],
        callbacks: tuple[keras.callbacks.Callback, ...] | None = (),
    ):
        self.model = model
        self._dispatcher = dispatcher = StepDispatcher.of(model)
        self.baseline: StepFunction = dispatcher.own
        self._progress = Progress(model, epochs, batches_per_epoch, lambda: dispatcher.calls)
        self._course = Course(
            model=model,
            settings=settings,
            agreement=agreement_of(model.distribute_strategy),
            dispatcher=dispatcher,
            progress=self._progress,
            callbacks=callbacks,
            on_tuning=on_tuning,
            on_report=on_report,
        )
        self._letting_go = LettingGo()
        self._steps = Steps(model, self.baseline, self._course)

    @property
    def phase(self) -> Phase:
        """Where the fit is."""
        return self._course.phase

    @property
    def path(self) -> tuple[Phase, ...]:
        """All phases so far, the present one last."""
        return tuple(self._course.phases.path)

    @property
    def plan(self) -> Plan:
        """The plan in use; after the fit, the last one."""
        return self._course.plan_run.plan

    @property
    def built(self) -> BuiltStep | None:
        """The traced step of the plan; None where none runs."""
        step = self._course.plan_run.step
        return None if step is None else step.function

    @property
    def validation(self) -> Validation | None:
        """The stand-in for the test function; None where that is left alone."""
        return self._course.plan_run.validation

    @property
    def holds_data(self) -> bool:
        """Whether any batch or any copy of the state is kept."""
        return self._course.observed.holds_data or self._course.plan_run.holds_state

    @property
    def report(self) -> Report | None:
        """What tuning found; None before the choice."""
        return self._course.announcer.report

    @report.setter
    def report(self, report: Report | None) -> None:
        self._course.announcer.report = report

    @property
    def steps_made(self) -> int:
        """How often Keras has called the train function in this fit."""
        return self._dispatcher.calls

    def workload(self) -> Workload:
        """The facts of the training so far; no process waits for another."""
        return self._course.observed.workload()

    def is_at_most(self, calls: int) -> bool:
        """Whether Keras is known to call the train function no more often than that."""
        steps = self._progress.steps_to_come
        return steps is not None and steps <= calls

    def start(self) -> None:
        """Takes the place of the model's train function, unless nothing can be done."""
        obstacle = ineligibility(self.model)
        if obstacle:
            self._course.stay_for(obstacle)
            return
        self._dispatcher.run(self._run, on_end=self._end, on_fault=self.give_up)

    def _end(self) -> None:
        """No step is tfaccel's any longer, nor is any batch or copy of the state kept for one."""
        course = self._course
        self._letting_go.release()
        course.plan_run.end_validation()
        course.plan_run.finish()
        course.observed.forget_batches()
        course.forget_search()
        course.races.contest = None

    def resume(self, earlier: FitSession) -> bool:
        """Goes on with the choice of an earlier fit of the compiled model, if there was one."""
        course, before = self._course, earlier._course
        same = earlier.model is self.model and earlier.baseline is self.baseline
        if not same or not before.is_decided or self.phase is not Phase.OBSERVE:
            return False
        workload = before.plan_run.workload or before.observed.workload()
        workload = dataclasses.replace(workload, callbacks=course.observed.callbacks)
        if course.agreement.any(any(p.unsupported(workload) for p in earlier.plan.passes)):
            return False  # a plan that can't serve among this fit's callbacks, on some worker
        self.report, course.is_decided = earlier.report, True
        course.observed.element_spec = before.observed.element_spec
        with course.own_work():
            if earlier.built is None:
                course.stay()
            else:
                course.start_plan(earlier.plan, workload, earlier.built)
        return True

    def leave_if_too_few(self) -> None:
        """Leaves a fit alone from the start if it is too short for any choice."""
        if self.report is not None:
            return
        steps = self._course.observed.agree_on_steps_to_come()
        note = too_few(steps) if self._course.settings.plan is None else ""
        if note and keras_private.trace_counter(self.baseline)():
            self._course.stay_for(note)

    def begin_epoch(self, epoch: int) -> None:
        """An epoch begins."""
        self._progress.begin_epoch(epoch)
        self._course.begin_epoch()

    def begin_validation(self) -> None:
        """A validation begins."""
        self._course.plan_run.begin_validation()

    def give_up(self, error: Exception) -> None:
        """Goes on with the original step, after tfaccel itself failed."""
        self._course.give_up(error)

    def stop(self) -> None:
        """Gives the train function (and the test function) back."""
        self._dispatcher.give_back()

    def finish(self) -> None:
        """The fit has ended."""
        try:
            self._course.finish()
        finally:
            self.stop()

    def _run(self, iterator: tf.data.Iterator) -> Any:
        if not is_plain(iterator):
            return self._course.run_own(iterator)
        self._letting_go.hold(iterator)
        self._course.announcer.add_wait(self._course.waiting.begin_steps())
        return self._steps.run(iterator)
