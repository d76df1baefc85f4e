"""The validation inside `fit`, accelerated where that pays."""

import enum
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.autotune.trial import coarsest_dtype, error_line
from tfaccel.compat import keras_private
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import Prepared
from tfaccel.core.workload import Workload
from tfaccel.measure import numerics, timing
from tfaccel.measure.numerics import Tolerance
from tfaccel.measure.racing import Race
from tfaccel.measure.timing import Clock
from tfaccel.steps.compiled_step import BuiltStep, OnTrace, StepFunction, build_step
from tfaccel.steps.own_step import OwnStep
from tfaccel.steps.repeatable import unrepeatable
from tfaccel.steps.replay import feed
from tfaccel.steps.snapshot import Snapshot
from tfaccel.steps.undoable_step import UndoableStep
from tfaccel.system import notices


class Turn(enum.Enum):
    """Which step validates.

    Attributes:
        TIMED: the user's, which is timed.
        ALTERNATING: the user's and the accelerated one in turns.
        ORIGINAL: the user's, for good.
        ACCELERATED: the accelerated one, as long as batches come in few sizes.
    """

    TIMED = "timed"
    ALTERNATING = "alternating"
    ORIGINAL = "original"
    ACCELERATED = "accelerated"


class Validation:
    """Stands in for `model.test_function` while a plan is in use.

    The first validation runs as it was written and is timed. From the second on,
    if the validations to come are worth another trace, steps alternate between the
    user's and the accelerated one (both evaluate real batches, so nothing is done
    twice), and the faster stays. Before that the accelerated step's losses on one batch
    are compared with those of the user's.

    Args:
        workload: the model.
        plan: the plan that the training uses.
        gain: the speedup of a training step under the plan, as far as it is known.
        tolerance: given by the user; None for the defaults.
        clock: seconds.
        on_wait: called with the seconds that tracing and comparing the accelerated step took.
        prepared: what the plan's passes found out before.

    Attributes:
        turn: which step validates.
    """

    def __init__(
        self,
        workload: Workload,
        plan: Plan,
        gain: float,
        tolerance: Tolerance | float | None,
        clock: Clock,
        on_wait: Callable[[float], None] = lambda seconds: None,
        prepared: Prepared | None = None,
    ):
        self._workload = workload
        self._plan = plan
        self._gain = gain
        self._tolerance = numerics.as_tolerance(tolerance, coarsest_dtype(plan, workload))
        self._clock = clock
        self._on_wait = on_wait
        self._prepared = prepared
        self._original = workload.model.test_function
        self._own = OwnStep(self._original, workload.model)  # there is none yet, at times
        self._installed: Any = None
        self.turn = Turn.TIMED
        self._fast: UndoableStep | None = None
        self._race = Race()
        self._first_seconds: list[float] = []
        self._validations = 0

    def install(self) -> None:
        """Takes the place of the model's test function."""
        model = self._workload.model
        model.make_test_function()
        self._own.function = model.test_function
        self._installed = model.test_function = self._run

    def remove(self) -> None:
        """Gives the place back."""
        model: keras.Model = self._workload.model
        if self._installed is not None and model.test_function is self._installed:
            model.test_function = self._own.function if self.was_used else self._original

    @property
    def was_used(self) -> bool:
        """Whether there was a validation in this fit, or an `evaluate` in a callback."""
        return bool(self._validations or self._first_seconds)

    def accelerate(self, step: BuiltStep) -> None:
        """From now on this step validates."""
        self._fast, self.turn = UndoableStep(step, self._own.taken), Turn.ACCELERATED

    def begin(self, epochs_to_come: int) -> None:
        """A validation begins.

        Args:
            epochs_to_come: epochs still to be validated, this one included.
        """
        self._validations += 1
        if self._fast is not None:
            self._fast.others_run()
        if self._validations == 2 and self.turn is Turn.TIMED:
            trace, *steps = self._first_seconds or [0.0]
            saved = sum(steps) * epochs_to_come * (1 - 1 / self._gain)
            self.turn = Turn.ALTERNATING if saved > trace else Turn.ORIGINAL

    def _run(self, iterator: Any) -> Any:
        """One step of a validation; whatever fails beside the user's step, that goes on."""
        return self._own.made(self._step, iterator, self._fault)

    def _fault(self, error: Exception, iterator: Any) -> Any:
        """Goes on with the user's own step, from where it would be."""
        self.turn = Turn.ORIGINAL
        _tell(error)
        if self._own.logs is not None or self._fast is None:
            return None
        return self._fast.redone(self._own.function, iterator)

    def _step(self, iterator: Any) -> Any:
        if self.turn is Turn.ORIGINAL or not isinstance(iterator, tf.data.Iterator):
            return self._own(iterator)  # test_on_batch, from some other callback
        if self.turn is Turn.ACCELERATED and self._fast is not None:
            return self._accelerated(self._fast, iterator)
        if not self._first_seconds:
            return self._first_user(iterator)
        if self.turn is Turn.ALTERNATING:
            return self._alternate(iterator)
        return self._timed(self._own, iterator, self._first_seconds.append)

    def _accelerated(self, step: UndoableStep, iterator: Any) -> Any:
        logs = step(iterator)
        self._own.note(logs)
        sizes = step.built.sizes
        if sizes is not None and sizes.too_many():
            self.turn = Turn.ORIGINAL  # XLA would compile for ever more sizes
        return logs

    def _first_user(self, iterator: tf.data.Iterator) -> Any:
        """The user's own step for the first time: there may be none that runs here."""
        batches = self._own.taken.pull(iterator)
        metrics = Snapshot(v for m in self._workload.model.metrics for v in m.variables)
        try:
            return self._timed(self._own, feed(batches, iterator), self._first_seconds.append)
        except tf.errors.OpError as error:
            if not any(item.fallback_reason(error) for item in self._plan.passes):
                raise
        metrics.restore()
        step = self._built()
        self.accelerate(step)
        return step(feed(batches, iterator))

    def _built(self, on_trace: OnTrace | None = None) -> BuiltStep:
        return build_step(
            self._workload,
            self._plan,
            kind="test",
            on_trace=on_trace,
            holds=self._workload.model.steps_per_execution == 1,
            prepared=self._prepared,
        )

    def _timed(self, step: StepFunction, iterator: Any, note: Callable[[float], None]) -> Any:
        start = self._clock()
        logs = step(iterator)
        self._own.note(logs)
        timing.wait_for(logs)
        note(self._clock() - start)
        return logs

    def _alternate(self, iterator: tf.data.Iterator) -> Any:
        if self._fast is None:
            return self._first_fast(iterator)
        step = self._fast if self._race.candidate_is_next else self._own
        logs = self._timed(step, iterator, self._race.note)
        self._fast.others_run()
        if self._race.is_decided:
            won = self._race.gain.low > 1.0
            self.turn = Turn.ACCELERATED if won else Turn.ORIGINAL
        return logs

    def _first_fast(self, iterator: tf.data.Iterator) -> Any:
        """Compares the two steps on one batch; the user's own step counts."""
        batches = self._own.taken.pull(iterator)
        start = self._clock()
        metrics = Snapshot(v for m in self._workload.model.metrics for v in m.variables)
        try:
            if unrepeatable(self._own.function, feed(batches, iterator)):
                self.turn = Turn.ORIGINAL
                return self._own(feed(batches, iterator))
            built = self._built(metrics.include_graph)
            if self._alike(batches, iterator, built):
                self._fast = UndoableStep(built, self._own.taken)
                self._fast.widen(batches[0])
            else:
                self.turn = Turn.ORIGINAL
        except Exception as error:
            if error is self._own.raised:
                raise
            _tell(error)
            self.turn = Turn.ORIGINAL
        metrics.restore()
        self._on_wait(self._clock() - start)
        return self._own(feed(batches, iterator))

    def _alike(self, batches: Any, iterator: tf.data.Iterator, fast: StepFunction) -> bool:
        losses: list[Any] = []
        for step in (fast, self._own.function):
            self._workload.model.reset_metrics()
            logs = step(feed(batches, iterator))
            losses.append(logs.get("loss") if isinstance(logs, dict) else logs)
        if losses[0] is None:
            return True
        error = numerics.loss_error(losses[1].numpy(), losses[0].numpy())
        return error <= self._tolerance.loss


def _tell(error: Exception) -> None:
    notices.warn(f"tfaccel leaves validation as it is: {error_line(error)}", stacklevel=3)


def serves_validation(plan: Plan, workload: Workload) -> bool:
    """Whether a plan changes the forward computation, of steps that can be traced under it.

    It must change more than the optimizer. A strategy, a loop of the user's, and a model with a
    make_test_function of its own, which may not trace steps anew, are not served.
    """
    if workload.strategy is not None or workload.in_loop:
        return False
    own = keras_private.overridden(workload.model, keras.Model, "make_test_function")
    return own is None and any(item.serves_validation for item in plan.passes)
