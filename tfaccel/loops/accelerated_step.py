"""A step of the user's own, each call of which may run under a plan."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.autotune.options import Options
from tfaccel.autotune.report import Report, show
from tfaccel.autotune.trial import error_line
from tfaccel.core.looped import Call
from tfaccel.core.plan import Plan
from tfaccel.core.workload import default_strategy
from tfaccel.loops.session import LoopSession
from tfaccel.steps.looped_model import LoopedModel
from tfaccel.steps.user_functions import UserFunction
from tfaccel.system import notices
from tfaccel.training.phases import Phase


class Stepper:
    """Runs steps by the original function, or by a session that may find a plan for it.

    Args:
        models: the user's.
        optimizers: the user's.
        function: makes a step; None where that must be left as it is.
        original: makes a step of the original where no session does.
        settings: what the user asked for.
        steps: how many there will be in all; None where unknown.
        verbose: whether to print the choice.
        note: why the function is left as it is; empty where it need not be.

    Attributes:
        session: makes the steps; None before the first one, and where nothing can be done.
    """

    def __init__(
        self,
        *,
        models: tuple[keras.layers.Layer, ...],
        optimizers: tuple[keras.optimizers.Optimizer, ...],
        function: UserFunction | None,
        original: Callable[..., Any],
        settings: Options,
        steps: int | None,
        verbose: int,
        note: str,
    ):
        self.session: LoopSession | None = None
        self._models, self._optimizers, self._function = models, optimizers, function
        self._original = original
        self._settings = settings
        self._steps = steps
        self._verbose = verbose
        self._note = note
        self._has_begun = False

    def __call__(self, call: Call) -> Any:
        """Makes a step; errors of the function are raised."""
        session = None
        try:
            # A user's own trace is to have the original step.
            if not tf.inside_function():
                session = self._present(call)
        except Exception as error:
            self._leave(error)
        return self._original(*call.args, **call.kwargs) if session is None else session(call)

    def _present(self, call: Call) -> LoopSession | None:
        """The session that makes this step; None for the original."""
        if not self._has_begun:
            self._begin(call)
        return None if self.session is None or self.session.is_over else self.session

    def _leave(self, error: Exception) -> None:
        """Leaves all further steps to the original, after tfaccel's own work failed."""
        self.session, self._has_begun = None, True
        self._note = f"It could not be accelerated: {error_line(error)}."
        notices.warn(f"tfaccel leaves the loop as it is: {self._note}", stacklevel=4)

    @property
    def plan(self) -> Plan:
        """The plan in use."""
        return Plan() if self.session is None else self.session.plan

    @property
    def report(self) -> Report:
        """What was found so far."""
        if self.session is None:
            return Report((), Plan(), note=self._note or "No step was made yet.")
        return self.session.report

    def finish(self) -> None:
        """Ends the session with the loop."""
        try:
            if self.session is not None:
                self.session.finish()
        except Exception as error:
            self._leave(error)

    def _begin(self, call: Call) -> None:
        self._has_begun = True
        if self._settings.plan is not None and self._settings.plan.is_baseline:
            return
        self._note = self._note or _ineligibility(self._models, call)
        if self._note:
            self._tell(self.report)
        else:
            self.session = self._started()

    def _started(self) -> LoopSession:
        looped = LoopedModel(self._models, self._optimizers, self._function)
        return LoopSession(looped, self._settings, self._steps, self._tell_tuning, self._tell)

    def _tell_tuning(self, seconds: float) -> None:
        if self._verbose:
            notices.say(
                f"\ntfaccel: trying accelerations on your batches, for {seconds:.0f} s at most"
            )

    def _tell(self, report: Report) -> None:
        if self._verbose:
            show(report, self._verbose)


class AcceleratedStep:
    """A training step that may run under a plan; called as the function was.

    Made by `accelerate_step`.

    Attributes:
        plan: the plan in use; `Plan()` until one is chosen, and where none is.
        report: the `Report` of what was tried, and why not more.
        session: makes the steps; None where the function is left as it is.
        path: the phases that the loop went through, the present one last.
    """

    def __init__(self, stepper: Stepper):
        self._stepper = stepper

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._stepper(Call(args, kwargs))

    @property
    def plan(self) -> Plan:
        """The plan in use."""
        return self._stepper.plan

    @property
    def report(self) -> Report:
        """What was found so far."""
        return self._stepper.report

    @property
    def session(self) -> LoopSession | None:
        """The session that makes the steps; None before the first, and without acceleration."""
        return self._stepper.session

    @property
    def path(self) -> tuple[Phase, ...]:
        """The phases so far; none where the function is left as it is."""
        return () if self.session is None else self.session.path

    def finish(self) -> None:
        """Ends the acceleration: the original makes further steps, and no batch is kept.

        Not needed at the end of a program; it frees the copies of the state that the NaN guard
        keeps, and the batches.
        """
        self._stepper.finish()


def _ineligibility(models: tuple[keras.layers.Layer, ...], call: Call) -> str:
    """Why acceleration is impossible from the start; empty where it is possible."""
    if tf.config.functions_run_eagerly():
        return (
            "TensorFlow runs functions eagerly (tf.config.run_functions_eagerly(True)), so there "
            "is no compiled step to accelerate."
        )
    own = [getattr(one, "distribute_strategy", None) for one in models]
    strategies = [tf.distribute.get_strategy(), *(one for one in own if one is not None)]
    for strategy in strategies:
        if strategy is not default_strategy():
            return f"Loops under {type(strategy).__name__} are left as they are; use `fit`."
    if any(isinstance(leaf, tf.Variable | keras.Variable) for leaf in tf.nest.flatten(call)):
        return "The step is handed variables, whose values change: hand it tensors instead."
    return ""
