"""A step under a plan, with the way back to the user's own."""

import enum
from collections.abc import Callable, Collection
from typing import Any

import tensorflow as tf

from tfaccel.autotune.trial import error_line
from tfaccel.core.compiled_sizes import MOST_SIZES
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import Prepared
from tfaccel.core.workload import Workload
from tfaccel.measure.timing import Clock, wait_for
from tfaccel.steps.compiled_step import BuiltStep, StepFunction, build_step, unheard_traces
from tfaccel.steps.held_batches import HeldBatches
from tfaccel.steps.logs import not_finite, tells_loss
from tfaccel.steps.replay import END_OF_DATA, Handed, feed, is_of_input
from tfaccel.steps.snapshot import Snapshot
from tfaccel.steps.taken_batches import TakenBatches
from tfaccel.steps.worker_agreement import WorkerAgreement
from tfaccel.training.nan_guard import NaNGuard, weights_are_finite

# Stands for the weights in a set of names of logs; no log has this name.
_WEIGHTS = "the weights"
# The first calls, after each of which sizes are counted, and the calls between later counts.
_CALLS_LOOKED_AT, _CALLS_A_LOOK = 32, 16


class Trust(enum.Enum):
    """How far a plan's step is trusted.

    Attributes:
        UNTRIED: it has not run; the state is kept before its first step.
        TRUSTED: it has run, here or in a trial.
        LEFT: it failed, or compiles for ever more sizes; the original step runs instead.
    """

    UNTRIED = "untried"
    TRUSTED = "trusted"
    LEFT = "left"


class GuardedStep:
    """Runs a plan's step for as long as it goes well.

    After any failure the training goes on with the user's own step from the last good
    state, and this step is not used again.

    Args:
        workload: the model; no batches are needed.
        plan: what the step is traced under.
        traced: the step, if a trial has traced it already.
        baseline: the user's own step.
        clock: seconds.
        guard: whether to watch for non-finite losses.
        on_abandon: called with the reason when the user's own step takes over.
        agreement: of the processes that train together, whose clock `clock` must be; None for
            one process.
        room: how many calls Keras is sure to make from now on before anybody looks at
            the model; steps never run further ahead.
        excused: the names of logs that are not finite under the user's own step either.
        on_many_sizes: called where XLA would have to compile the step for ever more sizes of
            batches, to start another step; None for the user's own.
        prepared: what the plan's passes found out before.
        on_step: called with the logs of each step under the plan, as soon as it ran.
        taken: the batches that are out of the training's iterator; None where nobody else asks.

    Attributes:
        function: the plan's step.
        trust: how far it is trusted.
        room: as given.
    """

    def __init__(
        self,
        workload: Workload,
        plan: Plan,
        traced: BuiltStep | None,
        baseline: StepFunction,
        clock: Clock,
        guard: bool,
        on_abandon: Callable[[str], None],
        agreement: WorkerAgreement | None = None,
        room: Callable[[], int] = lambda: 1,
        excused: Collection[str] = (),
        on_many_sizes: Callable[[], None] | None = None,
        prepared: Prepared | None = None,
        on_step: Callable[[Any], None] = lambda logs: None,
        taken: TakenBatches | None = None,
    ):
        self.function = traced or build_step(workload, plan, holds=guard, prepared=prepared)
        self._held = self.function.held or HeldBatches()
        self.function.ahead.clear()
        self._workload = workload
        self._plan = plan
        self._baseline = baseline
        self._guard: NaNGuard | None = None
        if guard:
            touched, on_keep = self.function.touched, self._held.mark_good
            self._guard = NaNGuard(workload, clock, touched, on_keep)
        self._before: Snapshot | None = None  # the state before the first step, while it runs
        self.function.touched.on_more = self._learn
        self._on_abandon = on_abandon
        self._agreement = agreement or WorkerAgreement()
        self.room = room
        self._on_step = on_step
        self._taken = taken or TakenBatches(workload.model)
        self._on_many_sizes = on_many_sizes
        self._calls = 0
        self._last_logs: Any = None
        self._bad_data = False  # the user's own data made the loss non-finite
        self._excused = set(excused)
        self.trust = Trust.UNTRIED if traced is None else Trust.TRUSTED

    def __call__(self, iterator: tf.data.Iterator) -> Any:
        try:
            match self.trust:
                case Trust.UNTRIED:
                    return self._first(iterator)
                case Trust.TRUSTED:
                    return self._run(iterator)
                case Trust.LEFT:
                    return self._baseline(iterator)
        except Exception:
            raise
        except BaseException:
            self._leave_finite()
            raise

    def _leave_finite(self) -> None:
        """The user interrupts, maybe before it was seen that the plan broke the weights."""
        guard, tried = self._guard, self.trust is not Trust.LEFT and not self._bad_data
        if guard is not None and tried and not weights_are_finite(self._workload):
            guard.restore()

    @property
    def has_failed(self) -> bool:
        """Whether the original step runs in its place, for good."""
        return self.trust is Trust.LEFT

    @property
    def has_run(self) -> bool:
        """Whether a step under the plan has run, and none has failed."""
        return self.trust is Trust.TRUSTED

    @property
    def holds_state(self) -> bool:
        """Whether copies of the model's state are kept."""
        return self._guard is not None or self._before is not None

    def release(self) -> None:
        """Lets go of copies of the state when the fit has ended; the traced step stays."""
        self.function.ahead.clear()
        self._guard, self._last_logs = None, None

    def resume(self) -> None:
        """Takes the present state as good, after other steps have run."""
        self.function.ahead.clear()
        self._last_logs = None
        if self._guard is not None:
            self._guard.keep_now()

    def begin_epoch(self) -> None:
        """Begins an epoch; the one before may have been broken off."""
        self.function.ahead.clear()
        if self._guard is not None:
            self._guard.begin_epoch()
        self._held.mark_epoch()

    def _learn(self) -> None:
        """Takes in what a new trace shows, before it runs."""
        if self._before is not None:
            self._before.include(self.function.touched.assigned())
        if self._guard is not None:
            self._guard.learn()

    def _first(self, iterator: tf.data.Iterator) -> Any:
        """The first step of a plan that was not tried here; if it fails, nothing is changed."""
        before = Snapshot.of(self._workload)  # before a batch is taken out: the copy needs memory
        batches = self._taken.pull(iterator)
        self._before = before
        broken: frozenset[str] = frozenset()
        try:
            with unheard_traces():
                logs = self.function(self._feed(batches, iterator))
                wait_for(logs)
            broken = self._broken(logs) | self._broken_weights()
            why = "the loss or a weight is not finite" if broken else ""
        except Exception as error:
            why = error_line(error)
        finally:
            self._before = None
        if not self._agreement.any(bool(why)):
            self.trust = Trust.TRUSTED
            self._on_step(logs)
            self._held.widen(batches[0])
            return self._checked(logs, iterator)
        before.restore()
        logs = self._baseline(self._feed(batches, iterator))
        is_the_same = bool(broken) and broken <= not_finite(logs) | self._broken_weights()
        if not self._agreement.any(not is_the_same):
            self._excused |= broken  # it is the same without the plan
            self.trust = Trust.TRUSTED
            return logs
        # If the user's own step fails too, its error is the one to see.
        self._abandon(f"{self._plan} does not work here: {why or 'it failed on another worker'}")
        return logs

    def _feed(self, batches: tuple[Any, ...], like: Any) -> Any:
        return feed(batches, like, self._workload.strategy)

    def _run(self, iterator: tf.data.Iterator) -> Any:
        if self.function.ahead:
            logs = self.function.ahead.popleft()
            self._on_step(logs)
            return self._checked(logs, iterator)
        try:
            logs, *later = self.function.run(iterator, self.room())
            self.function.ahead.extend(later)
        except END_OF_DATA:
            if self.function.steps_per_call == 1:
                raise
            # Keras's own step may draw random numbers before it finds the end.
            return self._baseline(iterator)
        except tf.errors.OpError as error:
            if is_of_input(error):
                raise  # the user's own input pipeline failed, as it would have anyway
            logs = self._fall_back(f"a step failed: {error_line(error)}", iterator)
            return self._baseline(iterator) if logs is None else logs
        except Exception as error:  # while tracing a new shape: no batch was taken
            self._abandon(f"a step could not be traced: {error_line(error)}")
            return self._baseline(iterator)
        self._on_step(logs)
        logs = self._checked(logs, iterator)
        self._look_at_sizes()
        return logs

    def _look_at_sizes(self) -> None:
        """Leaves a step that XLA would have to compile for ever more sizes."""
        self._calls += 1
        sizes, is_due = self.function.sizes, _is_due(self._calls)
        if sizes is None or not is_due or self.function.ahead or self.trust is Trust.LEFT:
            return
        if not sizes.too_many():
            return
        if self._on_many_sizes is None:
            self._abandon(f"batches come in more than {MOST_SIZES} sizes; XLA compiles each anew")
        else:
            self._on_many_sizes()

    def _checked(self, logs: Any, iterator: tf.data.Iterator) -> Any:
        """The logs; if these are not finite, those of the user's own step or the last good ones."""
        if self._broken(logs):
            again = self._fall_back("the loss turned non-finite", iterator)
            if again is None and isinstance(iterator, Handed):
                return self._baseline(iterator)  # the batch is still at hand
            if again is not None:
                return again
            last = self._last_logs
            return self._workload.model.get_metrics_result() if last is None else last
        if self._guard is not None and not self._bad_data:
            self._last_logs = logs
            self._guard.passed(is_latest=not self.function.ahead)
        return logs

    def _broken(self, logs: Any) -> frozenset[str]:
        """The names of logs that the plan, and not the data, made non-finite.

        Keras's loss is a mean over the epoch, so one bad batch makes the losses after it NaN
        too. A log that is no loss may be infinite by design: it counts only where the weights
        are not finite either.
        """
        found = not_finite(logs) if self._guard is not None else frozenset()
        self._excused -= {name for name in self._excused - found if tells_loss(name)}
        found -= self._excused
        if found and not any(map(tells_loss, found)) and weights_are_finite(self._workload):
            self._excused |= found
            found = frozenset()
        if not found:
            self._bad_data = False
            return found
        self._bad_data = self._bad_data or self._agreement.any(self.function.took_bad_data())
        return frozenset() if self._bad_data else found

    def _broken_weights(self) -> frozenset[str]:
        """As `_broken`, for the weights."""
        unguarded = self._guard is None or weights_are_finite(self._workload)
        return frozenset() if unguarded else frozenset({_WEIGHTS})

    def _fall_back(self, why: str, iterator: tf.data.Iterator) -> Any:
        """Puts the last good state back, and goes on with the user's own step.

        Returns:
            The logs of the last step that was trained again on a held batch; None where the batch
            of this step is lost, as it may be where a step fails.
        """
        if self._guard is None:
            self._abandon(why)
            return None
        steps = self._guard.steps_since_good + 1
        parts = self._held.since_good() or []
        held = sum(map(len, parts))
        count = self._workload.model.steps_per_execution
        again, lost = f"{held} batches are trained again by it", "the batches since then are lost"
        done = again if held else lost
        put_back = f"the state of {steps} step{'s' * (steps > 1)} ago is put back"
        self._guard.restore()
        self._abandon(f"{why}; {put_back}, and {done}")
        logs = self._trained_again(parts, iterator)
        return logs if held > (steps - 1) * count else None

    def _trained_again(self, parts: list[list[Any]], iterator: tf.data.Iterator) -> Any:
        """The user's own step on batches that were held, an epoch's in each list."""
        logs, count = None, self._workload.model.steps_per_execution
        for index, batches in enumerate(parts):
            if index:
                self._workload.model.reset_metrics()
            for start in range(0, len(batches), count):
                logs = self._baseline(self._feed(tuple(batches[start : start + count]), iterator))
        return logs

    def _abandon(self, why: str) -> None:
        self.trust = Trust.LEFT
        self._on_abandon(why)


def _is_due(calls: int) -> bool:
    """Whether to count sizes after so many calls; a count takes microseconds."""
    return calls <= _CALLS_LOOKED_AT or calls % _CALLS_A_LOOK == 0
