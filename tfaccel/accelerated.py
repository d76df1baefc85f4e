"""A step under a plan, with the way back to the user's own."""

import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfaccel.by_size import MOST_SIZES
from tfaccel.consensus import Consensus
from tfaccel.feed import END_OF_DATA, feed, pull
from tfaccel.guard import Guard, is_finite
from tfaccel.plan import Plan
from tfaccel.state import Snapshot
from tfaccel.step import BuiltStep, StepFunction, build_step, unheard_traces
from tfaccel.timing import Clock, wait_for
from tfaccel.trial import error_line
from tfaccel.workload import Workload

# The first calls, after each of which the count of sizes is looked at, and how often later.
_CALLS_LOOKED_AT, _CALLS_A_LOOK = 32, 16


class AcceleratedStep:
    """Runs a plan's step for as long as it goes well.

    Whatever fails, the training goes on with the user's own step from the last
    good state, with a warning, and this step is not used again.

    Args:
        workload: the model; no batches are needed.
        plan: what the step is traced under.
        traced: the step, if a trial has traced it already.
        baseline: the user's own step.
        clock: seconds.
        guard: whether to watch for losses that turn non-finite.
        on_abandon: called when the user's own step takes over.
        consensus: of the processes that train together; None for one alone. `clock` must
            be its.
        room: how many calls Keras is sure to make from now on before anybody looks at
            the model; what runs ahead never goes beyond.
        on_many_sizes: called where XLA would have to compile the step for ever more sizes of
            batches, and something else is to run; None for the user's own step.
    """

    def __init__(
        self,
        workload: Workload,
        plan: Plan,
        traced: BuiltStep | None,
        baseline: StepFunction,
        clock: Clock,
        guard: bool,
        on_abandon: Callable[[], None],
        consensus: Consensus | None = None,
        room: Callable[[], int] = lambda: 1,
        on_many_sizes: Callable[[], None] | None = None,
    ):
        self.function = traced or build_step(workload, plan)
        self.function.ahead.clear()
        self._workload = workload
        self._plan = plan
        self._baseline = baseline
        self._guard = Guard(workload, clock) if guard else None
        self._on_abandon = on_abandon
        self._consensus = consensus or Consensus()
        self._room = room
        self._on_many_sizes = on_many_sizes
        self._calls = 0
        self._last_logs: Any = None
        self._excused = False  # the user's own data made the loss what it is
        self._step: StepFunction = self._first if traced is None else self._run

    def __call__(self, iterator: tf.data.Iterator) -> Any:
        return self._step(iterator)

    def _first(self, iterator: tf.data.Iterator) -> Any:
        """The first step of a plan that was not tried here: whatever happens, nothing is lost."""
        batches = pull(iterator, self._workload.model.steps_per_execution)
        state = Snapshot.of(self._workload)
        try:
            with unheard_traces():
                logs = self.function(self._feed(batches, iterator))
                wait_for(logs)
            why = "the loss is not finite" if self._is_broken(logs) else ""
        except Exception as error:
            why = error_line(error)
        if self._consensus.any(bool(why)):
            why = why or "it failed on another worker"
            state.restore()
            self._leave()
            logs = self._baseline(self._feed(batches, iterator))
            # Where the user's own step fails, too, that says it all.
            _warn(f"{self._plan} does not work here: {why}")
            return logs
        self._step = self._run
        return self._checked(logs)

    def _feed(self, batches: tuple[Any, ...], like: Any) -> Any:
        return feed(batches, like, self._workload.strategy)

    def _run(self, iterator: tf.data.Iterator) -> Any:
        if self.function.ahead:
            return self._checked(self.function.ahead.popleft())
        try:
            logs, *later = self.function.run(iterator, self._room())
            self.function.ahead.extend(later)
        except END_OF_DATA:
            if self.function.steps_per_call == 1:
                raise
            # Keras's own step finds the end after it has drawn random numbers, at times.
            return self._baseline(iterator)
        except tf.errors.OpError as error:
            if "IteratorGetNext" in str(error):
                raise  # the user's own input pipeline failed, as it would have anyway
            self._fall_back(f"a step failed: {error_line(error)}")
            return self._baseline(iterator)
        except Exception as error:  # while tracing a new shape: no batch was taken
            self._abandon(f"a step could not be traced: {error_line(error)}")
            return self._baseline(iterator)
        logs = self._checked(logs)
        self._look_at_sizes()
        return logs

    def _look_at_sizes(self) -> None:
        """Leaves a step that XLA would have to compile for ever more sizes."""
        self._calls += 1
        sizes, is_due = self.function.sizes, _is_due(self._calls)
        if sizes is None or not is_due or self.function.ahead or self._step == self._baseline:
            return
        if not sizes.too_many():
            return
        if self._on_many_sizes is None:
            self._abandon(f"batches come in more than {MOST_SIZES} sizes; XLA compiles each anew")
        else:
            self._on_many_sizes()

    def _checked(self, logs: Any) -> Any:
        """The logs, or the last good ones if these are not finite."""
        if self._is_broken(logs):
            self._fall_back("the loss turned non-finite")
            last = self._last_logs
            return self._workload.model.get_metrics_result() if last is None else last
        if self._guard is not None and not self._excused:
            self._last_logs = logs
            self._guard.passed(is_latest=not self.function.ahead)
        return logs

    def _is_broken(self, logs: Any) -> bool:
        """Whether the loss is not finite, and the user's data are not the reason.

        Keras's loss is a mean over the epoch, so one bad batch makes the losses after
        it NaN too.
        """
        if self._guard is None:
            return False
        if is_finite(logs):
            self._excused = False
            return False
        self._excused = self._excused or self._consensus.any(self.function.took_bad_data())
        return not self._excused

    def _fall_back(self, why: str) -> None:
        """Back to the last good state, and on with the user's own step."""
        if self._guard is not None:
            steps = self._guard.steps_since_good + 1
            why += f"; the state of {steps} step{'s' * (steps > 1)} ago is put back"
            self._guard.restore()
        self._abandon(why)

    def _abandon(self, why: str) -> None:
        _warn(why)
        self._leave()

    def _leave(self) -> None:
        self._step = self._baseline
        self._on_abandon()


def _is_due(calls: int) -> bool:
    """Whether to look at the count of sizes after so many calls: a look takes microseconds."""
    return calls <= _CALLS_LOOKED_AT or calls % _CALLS_A_LOOK == 0


def _warn(why: str) -> None:
    warnings.warn(f"tfaccel goes on with your own step: {why}", RuntimeWarning, stacklevel=3)
