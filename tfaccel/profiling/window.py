"""Some steps under the TensorFlow profiler: the plan's, and as many of the user's own."""

import enum
import pathlib
import tempfile
from typing import NamedTuple

import rich.console

from tfaccel.core.plan import Plan
from tfaccel.profiling.ledger import Sink
from tfaccel.profiling.traces.op_trace import OpProfile, OpTrace, kinds_table, ops_table


class _Phase(enum.Enum):
    WAITING = "the first batch has not come yet"
    PLAN = "the step in use is traced"
    WARMING = "the user's own step runs once, so that its tf.function is traced already"
    READY = "the user's own step is about to be traced"
    OWN = "the user's own step is traced"
    DONE = "nothing is left to do"


class _Traced(NamedTuple):
    """A trace that succeeded."""

    plan: Plan
    steps: int
    profile: OpProfile


class TraceWindow:
    """Begins and ends the profiler's traces around the right steps.

    Args:
        log_dir: the folder for the traces; None for one that is removed again.
        batches: the first and the last batch (from 1); None for no trace.
        may_run_own: whether the user's own step may be traced after the plan's.
        sink: called with `ops` records.
    """

    def __init__(
        self,
        log_dir: pathlib.Path | None,
        batches: tuple[int, int] | None,
        may_run_own: bool,
        sink: Sink,
    ):
        self._first, self._last = batches or (0, -1)
        self._phase = _Phase.WAITING if batches else _Phase.DONE
        self._log_dir = log_dir
        self._may_run_own = may_run_own
        self._sink = sink
        self._trace: OpTrace | None = None
        self._begun_at = 0
        self._traced: list[_Traced] = []
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @property
    def is_tracing(self) -> bool:
        """Whether steps are slowed down now."""
        return self._trace is not None

    def wants_own(self, step: int) -> bool:
        """Whether the step after `step` batches must be the user's own; may begin a trace."""
        if self._phase is _Phase.WAITING and step + 1 >= self._first:
            self._begin(_Phase.PLAN, step)
        elif self._phase is _Phase.READY:
            self._begin(_Phase.OWN, step)
        return self._phase in (_Phase.WARMING, _Phase.OWN)

    def end_step(self, step: int, plan: Plan, was_regular: bool) -> None:
        """Notes the end of a step after `step` batches; may end a trace."""
        if self._phase is _Phase.WARMING:
            self._phase = _Phase.READY
        elif not self.is_tracing:
            return
        elif not was_regular:
            self._begin(self._phase, step)  # traces with a trial or compilation are of no use
        elif step - self._begun_at > self._last - self._first:
            self._end(step, plan)

    def close(self) -> None:
        """Ends with the training; an unfinished trace is dropped."""
        self._drop()
        self._phase = _Phase.DONE
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def tables(self) -> list[rich.console.RenderableType]:
        """The longest ops of each trace, then kinds of ops before and after acceleration."""
        found: list[rich.console.RenderableType] = []
        for plan, steps, profile in self._traced:
            many = f"{steps} steps" if steps > 1 else "one step"
            found += [
                f"tfaccel: ops of {_step_of(plan)} ({many} traced)",
                ops_table(profile, steps),
            ]
        if len(self._traced) == 2:
            (plan, steps_after, after), (_, steps, before) = self._traced
            found.append(f"tfaccel: your own step (before) and {_step_of(plan)} (after)")
            found.append(kinds_table(before, steps, after, steps_after))
        elif self._traced:
            found.append(kinds_table(self._traced[0].profile, self._traced[0].steps))
        return found

    def _begin(self, phase: _Phase, step: int) -> None:
        self._drop()
        if self._log_dir is None and self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="tfaccel-")
        folder = self._log_dir or pathlib.Path(self._scratch.name)  # type: ignore[union-attr]
        self._phase, self._begun_at = phase, step
        self._trace = OpTrace(folder)
        if not self._trace.start():
            self._trace, self._phase = None, _Phase.DONE

    def _end(self, step: int, plan: Plan) -> None:
        trace, self._trace = self._trace, None
        steps = step - self._begun_at
        profile = trace.stop() if trace is not None else None
        if profile is not None:
            self._traced.append(_Traced(plan, steps, profile))
            self._sink(profile.to_record(str(plan), steps))
        again = self._phase is _Phase.PLAN and not plan.is_baseline and self._may_run_own
        self._phase = _Phase.WARMING if again and profile is not None else _Phase.DONE

    def _drop(self) -> None:
        trace, self._trace = self._trace, None
        if trace is not None:
            trace.stop()


def _step_of(plan: Plan) -> str:
    return "your own step" if plan.is_baseline else f"a step under {plan}"
