"""The times of a training's steps, call by call."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from tfaccel.autotune.report import Report
from tfaccel.core.plan import Plan
from tfaccel.profiling.causes import Cause, Leaves, Retraces
from tfaccel.profiling.live import LiveComparison, Pair
from tfaccel.profiling.tally import Tally

# Called with each record as it is made; tfaccel.profiling.records has their keys.
Sink = Callable[[Mapping[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of the train function, measured."""

    seconds: float  # of the whole call, waiting for input included, tuning excluded
    began: float  # by the clock
    ended: float
    batches: int  # that it ran; several steps may run in one call
    samples: int | None  # in them; None where unknown
    waited_seconds: float | None  # for input; None where it was not measured
    plan: Plan  # that it ran under; the baseline for the user's own step
    is_comparison: bool  # whether it was the user's own step amid accelerated ones
    # Whether the TensorFlow profiler traced it, and so may have slowed it down.
    is_profiled: bool = False


class Ledger:
    """Adds calls up.

    A call is regular when nothing was traced, compiled or tuned in it. Only
    regular calls make step times; the others are counted by themselves.

    Args:
        live: makes pairs of the user's own steps and accelerated ones.
        sink: called with `trace`, `tuning` and `comparison` records.
    """

    def __init__(self, live: LiveComparison, sink: Sink):
        self.interval = Tally()  # the regular steps since `begin_interval`
        self.epoch = Tally()  # those since `begin_epoch`
        self.total = Tally()  # those under the plan that is in use now
        self.steps = 0  # batches so far, all of them
        self.elapsed_seconds = 0.0  # the time of all steps, tuning aside
        self.first_step_seconds: float | None = None
        self.tuning_seconds = 0.0  # that trials cost
        self.report: Report | None = None  # the tuning's
        self.profiler_seconds = 0.0  # by which the TensorFlow profiler made steps longer
        self.plan = Plan()  # that steps run under now
        self.traces = 0  # of the user's own step and the plan's
        self.compiles = 0  # how often XLA met new shapes
        self.retraces = Retraces()  # those of traces and compiles that came for another batch
        self.live = live
        self._sink = sink
        self._trace_seconds: list[float] = []
        self._last_end: float | None = None

    @property
    def compile_seconds(self) -> float:
        """The seconds of tracing and compiling, beyond the steps in which it happened."""
        usual = self.total.median_seconds or 0.0
        return sum(max(0.0, seconds - usual) for seconds in self._trace_seconds)

    def begin_epoch(self) -> None:
        """Begins an epoch: validation may lie between its steps and those before."""
        self.interval, self.epoch = Tally(), Tally()
        self._last_end = None
        self.live.note_irregular()

    def begin_interval(self) -> None:
        """Begins an interval."""
        self.interval = Tally()

    def add_regular(self, call: Call) -> None:
        """Adds a call in which nothing but a step happened."""
        since = call.seconds if self._last_end is None else call.ended - self._last_end
        self._count(call)
        for tally in (self.interval, self.epoch, self.total):
            tally.wall_seconds += since
            if call.is_comparison:
                tally.add_other(call.batches, call.samples)
            else:
                tally.add(call.seconds, call.batches, call.samples, call.waited_seconds)
        pair = self._pair(call)
        if pair is not None:
            plan = {"kind": "comparison", "plan": str(self.plan)}
            self._sink(plan | dataclasses.asdict(pair))

    def _pair(self, call: Call) -> Pair | None:
        seconds = call.seconds / call.batches
        if call.is_comparison:
            return self.live.note_own(self.steps - call.batches, seconds)
        return None if call.plan.is_baseline else self.live.note_plan(seconds)

    def add_irregular(self, call: Call) -> None:
        """Adds a call in which something was traced, compiled, tuned or profiled."""
        self._count(call)
        usual = self.total.median_seconds or call.seconds
        if call.is_profiled:
            self.profiler_seconds += max(0.0, call.seconds - usual * call.batches)
        compared = call.is_comparison and not call.is_profiled
        self.live.note_irregular(call.seconds if compared else 0.0)

    def _count(self, call: Call) -> None:
        if not call.is_comparison and call.plan != self.plan:
            self.plan, self.total = call.plan, Tally()
        self.steps += call.batches
        self.elapsed_seconds += call.seconds
        self._last_end = call.ended
        if self.first_step_seconds is None:
            self.first_step_seconds = call.seconds

    def note_tuning(self, report: Report) -> None:
        """Notes trials that took place in the call that is added next."""
        self.report = report
        self.tuning_seconds += report.tuning_seconds
        self._sink(
            {
                "kind": "tuning",
                "step": self.steps,
                "seconds": report.tuning_seconds,
                "report": report.to_dict(),
            }
        )

    def note_trace(
        self, call: Call, traces: int, compiled: bool, leaves: Leaves, cause: Cause
    ) -> None:
        """Notes that the call that is added next traced the step, or had XLA compile it."""
        self.retraces.add(cause)
        self.traces, self.compiles = traces, self.compiles + compiled
        self._trace_seconds.append(call.seconds / call.batches)
        self._sink(
            {
                "kind": "trace",
                "step": self.steps,
                "seconds": call.seconds,
                "traces": traces,
                "compiles": self.compiles,
                "plan": str(call.plan),
                "shapes": [str(leaf) for leaf in leaves],
            }
            | cause.to_dict()
        )
