"""The place of `model.train_function` during a fit."""

import weakref
from collections.abc import Callable
from typing import Any

import keras

from tfaccel.autotune.report import Report
from tfaccel.autotune.trial import error_line
from tfaccel.compat.keras_private import running_list
from tfaccel.core.plan import Plan
from tfaccel.steps.compiled_step import BuiltStep, StepFunction
from tfaccel.steps.own_step import OwnStep
from tfaccel.steps.replay import END_OF_DATA, ITERATORS
from tfaccel.steps.taken_batches import TakenBatches
from tfaccel.system import notices
from tfaccel.training.phases import IllegalTransitionError

# Runs one step on the fit's iterator, and measures it.
Meter = Callable[[Any], Any]


class StepDispatcher:
    """Stands in for `model.train_function` as long as a callback needs it.

    Keras looks `model.train_function` up at every step. One object takes its place for all
    of tfaccel's callbacks, which may come in any order: one may replace the step, another
    may measure the step that runs.

    Use `StepDispatcher.of(model)` from `on_train_begin` on; never two for one fit.

    Attributes:
        own: the user's own step function.
        run_own: makes one step of it.
        plan: the plan that `step` runs under.
        built: the accelerated function behind `step`, if there is one.
        report: what tuning found in this fit; None before.
        calls: how often Keras has called so far, whichever step ran.
        is_racing: whether a candidate takes turns with the step that ran so far; `built` is
            then that of the latest turn, and nobody may take batches out or run `own`.
        taken: the batches that are out of the fit's iterator and not trained on yet.
    """

    def __init__(self, model: keras.Model):
        self.own: StepFunction = model.train_function
        self.run_own = OwnStep(self.own, model)
        self.plan = Plan()
        self.built: BuiltStep | None = None
        self.report: Report | None = None
        self.calls = 0
        self.is_racing = False
        self.taken: TakenBatches = self.run_own.taken
        self._model = model
        self._history = _history(model)
        self._meter: Meter | None = None
        self._replacement: StepFunction | None = None
        self._on_end: Callable[[], None] = _nothing
        self._on_fault: Callable[[Exception], None] = _tell
        self._abandoned = self._when_abandoned()

    def _when_abandoned(self) -> Any:
        """Leaves when an exception outside any step (a callback's, an interrupt) ends the fit.

        Keras then calls no `on_train_end`, but lets go of its list of callbacks.
        """
        callbacks = running_list()
        if callbacks is None:
            return None
        found = weakref.finalize(callbacks, self._end)
        found.atexit = False
        return found

    @classmethod
    def leave(cls, model: keras.Model) -> None:
        """Gives a model its own train function back."""
        present = model.train_function
        if isinstance(present, cls):
            present._remove()

    @classmethod
    def of(cls, model: keras.Model) -> "StepDispatcher":
        """The dispatcher of this fit, which is installed if there is none yet."""
        present = model.train_function
        if isinstance(present, cls):
            if present._history is _history(model):
                return present
            present._end()  # a fit before this one ended by an exception outside any step
        model.train_function = made = cls(model)
        return made

    def __call__(self, iterator: Any) -> Any:
        if _history(self._model) is not self._history:
            self._end()
            return self._model.train_function(iterator)
        if not isinstance(iterator, ITERATORS):
            return self.own(iterator)  # train_on_batch, from some other callback
        try:
            logs = self.run_own.made(self._meter or self.step, iterator, self._fault)
        except END_OF_DATA:
            raise
        except BaseException:
            self._remove()
            raise
        self.calls += 1
        return logs

    def note(self, logs: Any) -> None:
        """Notes the logs of a step under a plan."""
        self.run_own.note(logs)

    def _fault(self, error: Exception, iterator: Any) -> Any:
        """tfaccel failed beside the step, which may be made by what runs from now on."""
        self._meter = None
        try:
            self._on_fault(error)
            if self.run_own.logs is None and self.is_replaced:  # batches were taken out
                return self.step(iterator)
        except IllegalTransitionError:  # of tests
            raise
        except Exception as again:
            self._remove()
            if self.run_own.is_users(again):
                raise
        return None

    @property
    def is_replaced(self) -> bool:
        """Whether an acceleration has taken over, so that `step` is not `own`."""
        return self._replacement is not None

    @property
    def step(self) -> StepFunction:
        """The step that runs now: the user's own unless an acceleration has taken over."""
        return self.run_own if self._replacement is None else self._replacement

    @property
    def is_watched(self) -> bool:
        """Whether somebody measures the steps."""
        return self._meter is not None

    def watch(self, meter: Meter | None, *, instead_of: Meter | None = None) -> None:
        """Has `meter` run each step from now on, by `step` or `own`; None ends that.

        Args:
            meter: runs and measures steps.
            instead_of: change nothing unless this meter is the present one; None for any.
        """
        if instead_of is not None and self._meter != instead_of:
            return
        self._meter = meter
        self._leave_unless_needed()

    def run(
        self,
        step: StepFunction,
        on_end: Callable[[], None],
        on_fault: Callable[[Exception], None] | None = None,
    ) -> None:
        """Runs `step` in place of `own` from now on.

        Args:
            step: given the fit's iterator.
            on_end: called when it no longer runs.
            on_fault: called with errors that are not the user's own step's.
        """
        self._replacement, self._on_end, self._on_fault = step, on_end, on_fault or _tell

    def give_back(self) -> None:
        """The user's own step takes over again."""
        self._replacement, self.plan, self.built = None, Plan(), None
        self.is_racing = False
        try:
            self._on_end()
        except Exception:
            self._ended()
            raise
        # Not where the user interrupts it: then it is done again when the fit's callbacks go.
        self._ended()

    def _ended(self) -> None:
        self._on_end = _nothing
        self._leave_unless_needed()

    def _leave_unless_needed(self) -> None:
        if self._meter is not None or self.is_replaced:
            return
        if self._abandoned is not None:
            self._abandoned.detach()
        if self._model.train_function is self:
            self._model.train_function = self.own

    def _end(self) -> None:
        """The fit is over, and no step will be made on what was taken out of its iterator."""
        self._remove()
        self.taken.clear()

    def _remove(self) -> None:
        self._meter = None
        try:
            self.give_back()
        except Exception as error:
            _tell(error)


def _history(model: keras.Model) -> Any:
    """An object that each fit has anew; None in a fit that was given a CallbackList."""
    return getattr(model, "history", None)


def _nothing() -> None:
    """Does nothing when a step ends."""


def _tell(error: Exception) -> None:
    """Warns of an error outside the steps, which go on."""
    why = error_line(error)
    notices.warn(f"tfaccel gave up and left the training as it is: {why}", stacklevel=4)
