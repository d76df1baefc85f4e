"""Runs and times every step of a fit, the plan's and the user's own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras

from tfaccel.autotune.report import Report
from tfaccel.compat import keras_private
from tfaccel.core.plan import Plan
from tfaccel.measure.timing import Clock, wait_for
from tfaccel.passes import XLA
from tfaccel.profiling.causes import FIRST, PLAN, Leaves, cause_of, leaves_of
from tfaccel.profiling.ledger import Call, Ledger
from tfaccel.profiling.sampling import OwnWaits, Sample, Sampling
from tfaccel.profiling.window import TraceWindow
from tfaccel.steps.compiled_step import StepFunction
from tfaccel.steps.multi_step import MultiStep
from tfaccel.steps.replay import is_plain
from tfaccel.steps.worker_agreement import agreement_of
from tfaccel.training.step_dispatcher import StepDispatcher

# The call whose waiting several workers measure first: those before trace, or find a full buffer.
_FIRST_SAMPLE = 8


class _State(NamedTuple):
    """Facts that a regular call does not change."""

    traces: int
    own_traces: int
    plan: Plan
    report: Report | None


class Meter:
    """Stands in for a step: runs and times it, and now and then runs the user's own instead."""

    def __init__(
        self,
        function: StepDispatcher,
        model: keras.Model,
        ledger: Ledger,
        tracer: TraceWindow | None,
        clock: Clock,
        steps: int | None = None,
        own_specs: dict[bool, Leaves] | None = None,
    ):
        self.batch_size: int | None = None  # the samples of a full batch; None where unknown
        self.first_batch: Any = None  # until somebody sets it to None
        self.element_spec: Any = None  # that the first batch came under
        self.sampling = Sampling(clock)  # how waiting for input is measured
        self.own_waits = OwnWaits()
        self._calls = 0
        self._function = function
        self._model = model
        self._strategy = model.distribute_strategy
        self._is_alone = agreement_of(self._strategy).is_alone
        self._ledger = ledger
        self._tracer = tracer
        self._clock = clock
        self._steps = steps  # batches of the whole training; None where unknown
        self._compiled_for: set[Any] = set()
        self._counters: dict[StepFunction | MultiStep, Callable[[], int]] = {}
        self.steps_in_epoch = 0  # so far
        self._steps_per_epoch: int | None = None
        # The batches that steps were last traced for (False), and compiled for (True).
        self._own_specs = {} if own_specs is None else own_specs
        self._specs: dict[StepFunction | MultiStep, dict[bool, Leaves]] = {}

    @property
    def traces(self) -> int:
        """How often the steps were traced so far, the user's own and those of plans.

        Traces of plans that do not run now count, too: in a race a plan comes and goes with its
        turns, and is traced once.
        """
        built = self._function.built
        for function in (self._function.own, *((built.function,) if built else ())):
            self._traced(function)
        return sum(count() for count in self._counters.values())

    def _traced(self, function: StepFunction | MultiStep) -> int:
        if function not in self._counters:
            self._counters[function] = keras_private.trace_counter(function)
        return self._counters[function]()

    def begin_epoch(self, steps_per_epoch: int | None) -> None:
        """Begins an epoch of so many batches; None where unknown."""
        self.steps_in_epoch, self._steps_per_epoch = 0, steps_per_epoch
        self._ledger.begin_epoch()

    def _steps_ahead(self) -> int:
        """Steps that ran in an earlier call, and were measured there."""
        built = self._function.built
        return len(built.ahead) if built else 0

    def __call__(self, iterator: Any) -> Any:
        if self._steps_ahead():
            return self._function.step(iterator)
        wanted, profiled = self._asked_by_tracer()
        own = self._can_take_own(iterator) and (wanted or (not profiled and self._is_own_due()))
        step: StepFunction = self._function.run_own if own else self._function.step
        before = self._state()
        start = self._clock()
        sample, feeding = self._sampled(iterator)
        logs = step(feeding)
        wait_for(logs)
        end = self._clock()
        call = self._measured(own, profiled, start, end, sample, before)
        self.steps_in_epoch += call.batches
        was_clean = self._add(call, iterator, sample, before)
        if self._tracer is not None:
            self._tracer.end_step(self._ledger.steps, call.plan, was_clean)
        return logs

    def _add(self, call: Call, iterator: Any, sample: Sample | None, before: _State) -> bool:
        """Hands a call to the ledger; returns whether nothing but a step happened in it."""
        compiled = self._is_compile(call, sample)
        if self.traces > before.traces or compiled:
            self._note_trace(call, iterator, sample if compiled else None, before)
        first = self._ledger.first_step_seconds is None
        racing = self._function.is_racing
        clean = before == self._state() and not compiled and not first and not racing
        if clean and not call.is_profiled:
            self._ledger.add_regular(call)
            if sample is not None:
                self.own_waits.add(sample.own_seconds, call.seconds, call.batches)
        else:
            self._ledger.add_irregular(call)
        return clean

    def _note_trace(self, call: Call, iterator: Any, sample: Sample | None, before: _State) -> None:
        """Notes a trace and its cause: how the batch differs from the last one traced for."""
        compiled = sample is not None
        fed = getattr(iterator, "element_spec", ()) if sample is None else sample.first
        leaves, built = leaves_of(fed), self._function.built
        of_own = self._traced(self._function.own) > before.own_traces
        if built is None or of_own or (call.plan.is_baseline and self.traces == before.traces):
            specs, expected = self._own_specs, FIRST
        else:
            specs, expected = self._specs.setdefault(built.function, {}), PLAN
        cause = cause_of(specs.get(compiled), leaves, expected)
        specs[compiled] = leaves
        self._ledger.note_trace(call, self.traces, compiled, leaves, cause)

    def _state(self) -> _State:
        own = self._traced(self._function.own)
        return _State(self.traces, own, self._function.plan, self._function.report)

    def _asked_by_tracer(self) -> tuple[bool, bool]:
        """Whether the tracer wants the user's own step, and whether it affects this step."""
        if self._tracer is None:
            return False, False
        wanted = self._tracer.wants_own(self._ledger.steps)
        return wanted, wanted or self._tracer.is_tracing

    def _can_take_own(self, iterator: Any) -> bool:
        # Several workers would have to agree on it, before each step.
        running = self._function.built is not None and not self._function.is_racing
        return running and is_plain(iterator) and self._is_alone

    def _is_own_due(self) -> bool:
        untraced = self._traced(self._function.own) == 0
        trace_seconds = (self._ledger.first_step_seconds or 0.0) if untraced else 0.0
        usual = self._ledger.total.median_seconds if untraced else None
        expected = usual * self._steps if usual and self._steps else None
        return self._ledger.live.is_due(self._ledger.elapsed_seconds, trace_seconds, expected)

    def _sampled(self, iterator: Any) -> tuple[Sample | None, Any]:
        """The step's batches, at the first call, an epoch's last one, and whenever it is cheap."""
        per_call, length = int(self._model.steps_per_execution), self._steps_per_epoch
        first = self._ledger.first_step_seconds is None
        last = length is not None and self.steps_in_epoch + per_call >= length
        due = self._is_sample_due()
        free = is_plain(iterator) and not self._function.is_racing
        free = free and not self._function.taken.has_more
        if not free or not (first or last or due):
            return None, iterator
        sample, feeding = self.sampling.take(iterator, self._function.taken, self._strategy)
        if self.batch_size is None:
            self.batch_size = sample.samples // sample.batches
            self.first_batch, self.element_spec = sample.first, iterator.element_spec
        return sample, feeding

    def _is_sample_due(self) -> bool:
        """Whether to see how long this call waits, whose batches are handed on by all workers.

        These go by the calls that they have made, as their clocks tell each another time: at the
        8th, the 16th, the 32nd and so on.
        """
        self._calls += 1
        if self._is_alone:
            return self.sampling.is_due(self._ledger.elapsed_seconds)
        return self._calls >= _FIRST_SAMPLE and self._calls.bit_count() == 1

    def _measured(
        self,
        own: bool,
        profiled: bool,
        start: float,
        end: float,
        sample: Sample | None,
        before: _State,
    ) -> Call:
        report, tuning_seconds = self._function.report, 0.0
        if report is not None and report is not before.report and _had_trials(report):
            if before.report is None or report.trials is not before.report.trials:
                self._ledger.note_tuning(report)
                tuning_seconds = report.tuning_seconds
            else:  # the training waited once more because of the same trials, between calls
                more = report.tuning_seconds - before.report.tuning_seconds
                self._ledger.tuning_seconds += more
        batches, samples, waited = self._size(sample)
        plan = Plan() if own else self._function.plan
        # In one process it is as short as the taking out, which looks like waiting: both count.
        handing = 0.0 if sample is None or self._is_alone else sample.handing_seconds
        # A part of the waiting may have been before this call.
        seconds = max(0.0, end - start - tuning_seconds - handing)
        return Call(seconds, start, end, batches, samples, waited, plan, own, profiled)

    def _size(self, sample: Sample | None) -> tuple[int, int | None, float | None]:
        """Batches and samples of a call, and how long it waited for them."""
        if sample is not None:
            return sample.batches, sample.samples, sample.waited_seconds
        batches = int(self._model.steps_per_execution) * (1 + self._steps_ahead())
        if self._steps_per_epoch is not None:
            batches = max(1, min(batches, self._steps_per_epoch - self.steps_in_epoch))
        return batches, None if self.batch_size is None else batches * self.batch_size, None

    def _is_compile(self, call: Call, sample: Sample | None) -> bool:
        """Whether XLA had to compile the step for shapes that it had not met."""
        chosen = [item.jit_compile for item in call.plan.passes if isinstance(item, XLA)]
        jit = chosen[-1] if chosen else self._model.jit_compile
        if sample is None or not jit:
            return False
        key = call.plan, sample.shapes
        new = key not in self._compiled_for
        self._compiled_for.add(key)
        return new


def _had_trials(report: Report) -> bool:
    """Whether plans were tried in this fit, or one was taken that must be paid back."""
    tried = len(report.trials) > 1 or not report.plan.is_baseline
    return tried and not report.cached and report.tuning_seconds > 0
