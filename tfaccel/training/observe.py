"""The phases before a choice: OBSERVE, in which steps are timed, and AWAIT_LENGTH."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.autotune.eligibility import plainly_too_short, too_few
from tfaccel.autotune.options import COLLECTED_STEPS
from tfaccel.autotune.report import Report
from tfaccel.autotune.trial import error_line
from tfaccel.compat import keras_private
from tfaccel.measure.timing import wait_for
from tfaccel.steps.compiled_step import StepFunction, unheard_traces
from tfaccel.steps.snapshot import build_all
from tfaccel.system import notices
from tfaccel.system.garbage import resting_first
from tfaccel.system.later import later
from tfaccel.training.course import Course
from tfaccel.training.first_step import FirstStepFallback
from tfaccel.training.given_plan import calls_to_look_at, must_observe
from tfaccel.training.phases import Phase

TYPE_CHECKING = False  # see tfaccel/system/later.py
if TYPE_CHECKING:
    from tfaccel.autotune import warm_start
else:
    warm_start = later("tfaccel.autotune.warm_start")


class Observing:
    """Runs the original step until enough is known to decide.

    Args:
        model: whose fit it is.
        baseline: the original step.
        course: of the fit.
        dispatch: runs one step, by the phase of that moment.
    """

    def __init__(
        self,
        model: keras.Model,
        baseline: StepFunction,
        course: Course,
        dispatch: Callable[[tf.data.Iterator], Any],
    ):
        self._model = model
        self._baseline = baseline
        self._course = course
        self._dispatch = dispatch

    def observe(self, iterator: tf.data.Iterator) -> Any:
        """Prepares at the first call, times the next ones, and decides when they suffice."""
        course, observed = self._course, self._course.observed
        if observed.element_spec is None:
            iterator = self._look_ahead(iterator)
        elif iterator.element_spec != observed.element_spec:
            course.stay_for("The structure or dtype of batches changed, so nothing was tried.")
        if course.phase is not Phase.OBSERVE:
            return self._dispatch(iterator)
        if len(observed.seconds) >= (COLLECTED_STEPS if course.settings.plan is None else 1):
            return self._decided_step(iterator)
        return self._timed_step(iterator)

    def await_length(self, iterator: tf.data.Iterator) -> Any:
        """Runs the original step until the first epoch has shown how long an epoch is.

        The next epoch begins at the same step in all processes, even if their data differ.
        """
        if self._course.is_length_awaited:
            return self._course.run_own(iterator)
        return self._decided_step(iterator)

    def _look_ahead(self, iterator: tf.data.Iterator) -> tf.data.Iterator:
        course, calls = self._course, 0
        with course.own_work():
            calls = self._prepare(iterator.element_spec)
        if calls:
            course.observed.take(iterator, calls)
            if course.settings.plan is None:
                self._start_warm(iterator)
            else:
                course.decide()
            iterator = course.observed.fed(iterator)
        return iterator

    def _start_warm(self, iterator: tf.data.Iterator) -> None:
        """Begins with a plan from the cache, where it is sure to be the right one."""
        course, observed = self._course, self._course.observed
        with course.own_work():
            report = warm_start.known_for_sure(observed.workload(), course.settings)
            if report is None or must_observe(report.plan, observed.workload()):
                return observed.forget_batches()
            more = calls_to_look_at(report.plan, observed.workload()) - 1
            if more > 0:
                with contextlib.suppress(StopIteration):  # a short epoch
                    observed.take(iterator, more)
                report = warm_start.known_for_sure(observed.workload(), course.settings)
            if report is None:
                return observed.forget_batches()
            course.announcer.announce(report)
            course.start_plan(report.plan, observed.workload(), None)

    def _prepare(self, element_spec: Any) -> int:
        """Prepares the first call; returns how many calls' batches a plan must know to run."""
        course, observed = self._course, self._course.observed
        explicit = course.settings.plan
        observed.element_spec = element_spec
        steps = observed.agree_on_steps_to_come()
        is_traced = bool(keras_private.trace_counter(self._baseline)())
        if not is_traced:
            self._build_variables()
        if explicit is None:
            self._stay_for(too_few(steps))
            if course.phase is Phase.OBSERVE and course.memory.was_too_short:
                self._stay_for(course.chooser.known_too_short())
            cache = course.settings.cache
            may_be_known = cache and cache.has_plans() and observed.workload().strategy is None
            return int(bool(may_be_known) and course.phase is Phase.OBSERVE and not is_traced)
        workload = observed.workload()
        if course.memory.step(explicit, element_spec) is None:
            if must_observe(explicit, workload):
                return 0
            if calls := calls_to_look_at(explicit, workload):
                return calls
        course.decide()
        return 0

    def _build_variables(self) -> None:
        """Makes the variables early, where that spares the first step a second trace."""
        explicit = self._course.settings.plan
        if explicit is not None and explicit.is_baseline:
            return
        try:
            build_all(self._model, self._course.observed.element_spec)
        except Exception as error:
            why = error_line(error)
            notices.warn(f"tfaccel has the first step make the variables: {why}", stacklevel=2)

    def _timed_step(self, iterator: tf.data.Iterator) -> Any:
        """One step of the original that is timed and whose batches are kept."""
        course, observed = self._course, self._course.observed
        batches = observed.pull(iterator)
        begun, feeding, saved = course.clock(), None, None
        with course.own_work():
            feeding = observed.feed(batches, iterator)
            if not observed.seconds:
                saved = FirstStepFallback.of(observed.workload(), course.settings, batches[0])
            observed.begin_step()
        if feeding is None:
            return self._dispatch(observed.fed_again(iterator))
        start = course.clock()
        logs, error = self._tried(feeding)
        seconds = course.clock() - start
        report = None if saved is None else saved.agree_on_report(error, course.agreement)
        if saved is not None and report is not None:
            self._start_fallback(saved, report)
            return self._dispatch(observed.fed_again(iterator))
        if error is not None:
            raise error
        if course.phase is Phase.OBSERVE:
            with course.own_work():
                observed.end_step(seconds, logs, batches)
                course.waiting.add(start - begun)
        return logs

    def _tried(self, feeding: Any) -> tuple[Any, Exception | None]:
        """The logs of a step of the original, or the error of TensorFlow's that it raised."""
        try:
            # In a loop over many models TensorFlow would warn of its count of traces.
            with unheard_traces(), resting_first("first step"):
                logs = self._course.run_own(feeding)
                wait_for(logs)
        except tf.errors.OpError as error:
            return None, error
        return logs, None

    def _start_fallback(self, saved: FirstStepFallback, report: Report) -> None:
        """Goes on with a plan whose step runs where the original fails; nothing can be compared."""
        with self._course.own_work():
            saved.restore(self._model)
            self._course.announcer.announce(report)
            self._course.start_given(report.plan)

    def _stay_for(self, note: str) -> None:
        """The original step runs from now on, if there is a reason."""
        if note:
            self._course.stay_for(note)

    def _decide(self) -> None:
        """What nobody need look into is decided here; passes are loaded for the rest."""
        course = self._course
        with course.own_work():
            course.observed.agree_on_steps_to_come()
            given, workload = course.settings.plan, course.observed.workload()
            note = plainly_too_short(workload, course.settings) if given is None else ""
            if note and not course.observed.grows:
                course.phases.enter(Phase.PREDICT)
                course.stay_for(note)
        if course.phase is not Phase.STAY:
            course.decide()

    def _decided_step(self, iterator: tf.data.Iterator) -> Any:
        """Decides, and makes the first step under the choice.

        The time that this takes beyond a step is tuning's cost, so the report is shown afterwards.
        """
        course = self._course
        start = course.clock()
        with course.announcer.held_back():
            self._decide()
            logs = self._dispatch(iterator)
            if course.announcer.report is not None:
                wait_for(logs)
                usual = course.observed.usual_seconds
                waited = course.clock() - start - usual + course.waiting.taken()
                course.announcer.set_tuning_seconds(waited)
        return logs
