"""One accelerated training loop, and which function makes each of its steps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.autotune.options import Options
from tfaccel.autotune.report import Report
from tfaccel.core.looped import Call, Returned
from tfaccel.core.plan import Plan
from tfaccel.loops.course import LoopCourse
from tfaccel.loops.progress import LoopProgress
from tfaccel.steps.looped_model import LoopedModel, Made
from tfaccel.steps.replay import Handed
from tfaccel.steps.user_functions import UserFunction, calls_others
from tfaccel.steps.worker_agreement import WorkerAgreement
from tfaccel.training.phases import Phase
from tfaccel.training.step_dispatcher import StepDispatcher
from tfaccel.training.steps import Steps

_NESTED = (
    "Your step calls other tf.functions. They are traced already, so a plan would not reach "
    "them. Decorate the outermost function alone with tf.function."
)


class LoopSession:
    """Makes the steps of one loop, each by the original function or under a plan.

    Args:
        looped: the loop's models, optimizers and function.
        settings: what the user asked for.
        steps: how many there will be in all; None where unknown.
        on_tuning: called with the budget in seconds before trials begin.
        on_report: called once with the report, when the choice is made.
    """

    def __init__(
        self,
        looped: LoopedModel,
        settings: Options,
        steps: int | None,
        on_tuning: Callable[[float], None],
        on_report: Callable[[Report], None],
    ):
        self._function: UserFunction = looped.function
        self._made: Made = looped.made
        self._dispatcher = dispatcher = StepDispatcher(looped)
        self._course = LoopCourse(
            model=looped,
            settings=settings,
            agreement=WorkerAgreement(),
            dispatcher=dispatcher,
            progress=LoopProgress(lambda: dispatcher.calls, steps),
            callbacks=(),
            on_tuning=on_tuning,
            on_report=on_report,
        )
        self._steps = Steps(looped, dispatcher.own, self._course)
        dispatcher.run(self._steps.run, on_end=lambda: None)
        self._is_known = False

    @property
    def path(self) -> tuple[Phase, ...]:
        """All phases so far, the present one last."""
        return tuple(self._course.phases.path)

    @property
    def plan(self) -> Plan:
        """The plan in use."""
        return self._course.plan_run.plan

    @property
    def report(self) -> Report:
        """What tuning found so far."""
        found = self._course.announcer.report
        if found is None:
            return self._course.observed.untried("No trial was expected to pay for itself so far.")
        return found

    @property
    def holds_data(self) -> bool:
        """Whether any batch or any copy of the state is kept."""
        return self._course.observed.holds_data or self._course.plan_run.holds_state

    @property
    def is_over(self) -> bool:
        """Whether the original function makes all steps from now on."""
        return not self._dispatcher.is_replaced

    def __call__(self, call: Call) -> Any:
        """Makes a step, and returns the function's results.

        Raises:
            Exception: any that the function itself raises.
        """
        with self._course.own_work():
            call = _frozen(call)
            self._course.look_again()
        returned = self._made_step(call)
        self._dispatcher.calls += 1
        if not self._is_known:
            self._is_known = True
            with self._course.own_work():
                self._look_into(call)
        return returned.value

    def _made_step(self, call: Call) -> Returned:
        made = self._made
        try:
            return self._dispatcher.step(Handed((call,)))
        except Exception as error:
            if error is made.raised:
                raise  # the function's own
            self._course.give_up(error)
            # An error outside the step, which has run or is still to run.
            return made.returned if made.call is call else self._dispatcher.own(Handed((call,)))
        finally:
            made.forget()  # holds a batch
            self._dispatcher.taken.clear()  # each call has its own

    def _look_into(self, call: Call) -> None:
        """Looks, after the function was traced, whether it calls functions that no plan reaches."""
        if calls_others(self._function.concrete(call).graph):
            self._course.stay_for(_NESTED)

    def finish(self) -> None:
        """Ends with the loop: lets go of batches and copies of the state."""
        self._dispatcher.give_back()
        self._course.finish()


def _frozen(call: Call) -> Call:
    """The call with arrays as tensors, as the loop may reuse its arrays for the next step."""
    return tf.nest.map_structure(_tensor, call)


def _tensor(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray | np.generic):
        return tf.constant(np.array(leaf))
    return leaf
