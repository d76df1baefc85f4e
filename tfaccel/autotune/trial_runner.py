"""Trying one plan on a workload."""

import abc
import contextlib
import dataclasses
import gc
import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import tensorflow as tf

from tfaccel.autotune.trial import OUT_OF_MEMORY, WORTHWHILE, Trial, error_line
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import Prepared, StepContext
from tfaccel.core.workload import Workload
from tfaccel.measure import racing, timing
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Clock, Speedup
from tfaccel.passes import PASSES
from tfaccel.steps.compiled_step import unheard_traces
from tfaccel.steps.snapshot import Snapshot
from tfaccel.steps.worker_agreement import WorkerAgreement
from tfaccel.system.memory import is_out_of_memory

_Self = TypeVar("_Self", bound="TrialRunner")


class TrialRunner(abc.ABC):
    """A workload set up for trials, in which plans take turns with the user's own step.

    Subclasses define what a step is, and when one is faithful. Use as a context manager: on
    leaving, the state is what it was at the beginning, bit for bit, however the block ends.

    Args:
        workload: with at least one kept batch.
        clock: seconds, such as `time.perf_counter`.
        consensus: of the processes that train together; None for one alone. `clock` must
            be its.
        prepared: keeps what passes find out.
    """

    def __init__(
        self,
        workload: Workload,
        clock: Clock,
        agreement: WorkerAgreement | None = None,
        prepared: Prepared | None = None,
    ):
        self.workload = workload
        self.prepared = prepared if prepared is not None else Prepared()
        self.clock = clock
        self.agreement = agreement or WorkerAgreement()
        self._snapshot = Snapshot.of(workload)
        self._functions: dict[Plan, Any] = {}
        self._unheard = contextlib.ExitStack()

    def __enter__(self: _Self) -> _Self:
        self._unheard.enter_context(unheard_traces())
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._unheard.close()
        finally:  # the user may interrupt the first
            self._snapshot.restore()

    @abc.abstractmethod
    def _build(self, plan: Plan) -> Any:
        """The function of a plan. Nothing is traced yet."""

    @abc.abstractmethod
    def _first(self, plan: Plan) -> Callable[[], Any]:
        """A function that runs one step under a plan, by the function that was built for it."""

    @abc.abstractmethod
    def calls(self, plan: Plan, count: int) -> Callable[[], Any]:
        """Makes so many steps under a plan in one call; `count` is what it runs in one at most."""

    @abc.abstractmethod
    def own_calls(self, count: int) -> Callable[[], Any]:
        """Makes as many of the user's own steps, each called from Python as Keras does."""

    @abc.abstractmethod
    def _judged(self, trial: Trial) -> Trial:
        """A faster trial with its drift, and UNFAITHFUL where that is too large."""

    @contextlib.contextmanager
    def _restored(self) -> Iterator[None]:
        """A block that begins from the same state and metrics as every other trial."""
        self._snapshot.restore()
        try:
            yield
        finally:
            self._snapshot.restore()

    def try_plan(self, plan: Plan, deadline: float = math.inf) -> Trial:
        """Refusals, trace, timing against the baseline, then faithfulness.

        Args:
            plan: what to try.
            deadline: the clock's value after which timing should end.

        Returns:
            The trial. Errors within the plan become its outcome; only KeyboardInterrupt and
                its like are raised.
        """
        refused = self._refused(plan)
        if refused is not None:
            return refused
        trial = self._agreed(self._tried(plan, deadline))
        if trial.outcome is Outcome.FAILED:
            self.forget(plan)
        if trial.ran_out_of_memory:
            gc.collect()  # what the step held is in cycles
        return trial

    def check(self, plan: Plan, deadline: float, prepare_seconds: float = math.inf) -> Trial:
        """A trial without a race: for a plan that is known to be faster, or is raced elsewhere.

        Args:
            plan: what to check.
            deadline: the clock's value at which its passes should be ready.
            prepare_seconds: that they may take to get ready.

        Returns:
            The trial; FASTER stands for a plan that is faithful and not clearly slower.
        """
        refused = self._refused(plan)
        if refused is not None:
            return refused
        deadline = min(deadline, self.clock() + prepare_seconds)
        trial = self._agreed(self._checked(plan, deadline))
        if trial.outcome is not Outcome.FASTER:
            self.forget(plan)
        return trial

    def _checked(self, plan: Plan, deadline: float) -> Trial:
        compile_seconds = 0.0
        try:
            with self._restored():
                plan.prepare(self._context(), self.clock, deadline)
                step = self.begin(plan)
                compile_seconds = max(0.0, self._timed(step) - self.workload.step_seconds)
                usual, first = self._first_look(plan, math.inf)
            if racing.seems_hopeless(usual, first):
                return _stopped(plan, usual, first, compile_seconds)
            trial = Trial(plan, Outcome.FASTER, "", compile_seconds, first)
            return self._judged(dataclasses.replace(trial, findings=self._findings(plan)))
        except Exception as error:
            return self._failed(plan, error, compile_seconds)

    def _first_look(self, plan: Plan, deadline: float) -> tuple[float, float]:
        return racing.first_look(
            self.workload.step_seconds,
            lambda: self._timed(self.own_calls(1)),
            lambda: self._first_seconds(plan, self.workload.step_seconds),
            self.clock,
            deadline,
        )

    def _failed(self, plan: Plan, error: Exception, compile_seconds: float) -> Trial:
        reason = error_line(error)
        if is_out_of_memory(error):
            reason = f"{OUT_OF_MEMORY}: {reason}; {_less_memory(plan)}"
        return Trial(plan, Outcome.FAILED, reason, compile_seconds)

    def _refused(self, plan: Plan) -> Trial | None:
        """A trial that ends with the first refusal; None where no pass refuses."""
        for item in plan.passes:
            unsupported = item.unsupported(self.workload)
            if unsupported is not None:
                reason = f"{item.name}: {unsupported}"
                return Trial(plan, Outcome.REFUSED, reason, refusal=unsupported.kind)
        return None

    def _agreed(self, trial: Trial) -> Trial:
        """The trial as all processes take it: the chief's, failed if it failed anywhere."""
        failed = self.agreement.any(trial.outcome is Outcome.FAILED)
        trial = self.agreement.same(trial)
        if failed and trial.outcome is not Outcome.FAILED:
            return dataclasses.replace(
                trial, outcome=Outcome.FAILED, reason="it failed on another worker"
            )
        return trial

    def _tried(self, plan: Plan, deadline: float) -> Trial:
        compile_seconds = 0.0
        try:
            with self._restored(), self._peak_memory() as peak:
                # Half of the time that is left, as the trial needs some too.
                now = self.clock()
                plan.prepare(self._context(), self.clock, now + (deadline - now) / 2)
                one = self.begin(plan)
                compile_seconds = max(0.0, self._timed(one) - self.workload.step_seconds)
                trial = self._timed_trial(plan, compile_seconds, deadline)
            trial = dataclasses.replace(
                trial, peak_memory_bytes=peak(), findings=self._findings(plan)
            )
            if trial.outcome is not Outcome.FASTER:
                return trial
            if self.clock() + self._judging_seconds(trial) > deadline:
                reason = "faster, but there was no time left to compare it"
                return dataclasses.replace(trial, outcome=Outcome.UNDECIDED, reason=reason)
            return self._judged(trial)
        except Exception as error:
            return self._failed(plan, error, compile_seconds)

    def time_again(self, plan: Plan, deadline: float = math.inf) -> Speedup:
        """A fresh measurement of a plan that was tried, free of the luck that made it win."""
        with self._restored():
            # It is known to be fast, so that these few cost little.
            return self.race(plan, deadline, racing.FEWEST).gain

    def _judging_seconds(self, trial: Trial) -> float:
        """The seconds that comparing a timed plan is expected to take; 0 by default."""
        return 0.0

    def step_function(self, plan: Plan) -> Any:
        """The function that was traced for a plan, for use without another trace."""
        return self._functions[plan]

    def forget(self, plan: Plan) -> None:
        """Lets go of a plan's traced function and its memory."""
        self._functions.pop(plan, None)

    def _context(self) -> StepContext:
        return StepContext(self.workload, prepared=self.prepared)

    def _findings(self, plan: Plan) -> tuple[str, ...]:
        context = self._context()
        return tuple(line for item in plan.passes for line in item.findings(context))

    def begin(self, plan: Plan) -> Callable[[], Any]:
        """Builds a plan's function; gives its first step."""
        failure: Exception | None = None
        try:
            self._functions[plan] = self._build(plan)
        except Exception as error:
            failure = error
        # A worker that ran the step would wait for the others for good.
        if self.agreement.any(failure is not None):
            raise failure or RuntimeError("it could not be built on another worker")
        return self._first(plan)

    def _timed(self, step: Callable[[], Any]) -> float:
        return timing.timed(step, self.clock)

    def race(
        self, plan: Plan, deadline: float, fewest: int = 0, step_seconds: float = 0.0
    ) -> racing.Race:
        """The user's own steps against the plan's.

        Both sides run the same number of steps in a turn: as many as the plan runs in one call,
        so that the time between steps counts for both.

        Args:
            plan: what was traced.
            deadline: the clock's value at which all should have ended.
            fewest: pairs that are made whatever the deadline is.
            step_seconds: of a step under the plan, as measured so far.
        """
        steps = plan.steps_per_call
        return racing.race(
            self.own_calls(steps),
            self.calls(plan, steps),
            self.clock,
            deadline,
            fewest=fewest,
            expected_seconds=steps * (self.workload.step_seconds + step_seconds),
        )

    def _timed_trial(self, plan: Plan, compile_seconds: float, deadline: float) -> Trial:
        usual, first = self._first_look(plan, deadline)
        if racing.seems_hopeless(usual, first):
            return _stopped(plan, usual, first, compile_seconds)
        race = self.race(plan, deadline, step_seconds=first)
        if race.pairs < racing.FEWEST:
            reason = "there was no time left to measure it"
            return Trial(plan, Outcome.UNDECIDED, reason, compile_seconds, first)
        outcome, reason = racing.verdict(race.gain, WORTHWHILE)
        median = statistics.median(race.candidate_seconds) / plan.steps_per_call
        return Trial(plan, outcome, reason, compile_seconds, median, race.gain)

    @contextlib.contextmanager
    def _peak_memory(self) -> Iterator[Callable[[], int | None]]:
        """Gives a function that tells the device's peak since entering; None on a CPU."""
        if self.workload.device.kind != "GPU":
            yield lambda: None
            return
        tf.config.experimental.reset_memory_stats("GPU:0")
        yield lambda: int(tf.config.experimental.get_memory_info("GPU:0")["peak"])

    def _first_seconds(self, plan: Plan, usual: float) -> float:
        """The seconds of a step, from as few steps as possible.

        First one step in a call. If that is clearly slower, the time around the steps of a call may
        be the reason: then twice as many, and so on up to what the plan runs in one call, as long
        as the call takes no longer than that many clearly slower steps would.
        """
        count, most = 1, racing.CLEARLY_SLOWER * usual * plan.steps_per_call
        seconds = self._timed(self.calls(plan, count))
        while count < plan.steps_per_call and seconds / count > racing.CLEARLY_SLOWER * usual:
            if 2 * seconds > most:
                break
            count = min(2 * count, plan.steps_per_call)
            seconds = self._timed(self.calls(plan, count))
        return seconds / count


def _stopped(plan: Plan, usual: float, first: float, compile_seconds: float) -> Trial:
    reason = f"its first traced step took {first / usual:.1f} times the baseline's"
    return Trial(plan, Outcome.STOPPED, reason, compile_seconds, first)


def _less_memory(plan: Plan) -> str:
    spare = next(kind.name for kind in PASSES if kind.saves_memory)
    saves = any(item.saves_memory for item in plan.passes)
    return f"smaller batches need less{'' if saves else f', and so does the pass {spare}'}"
