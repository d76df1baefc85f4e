"""The measuring of one fit, from its first step to its table."""

import datetime
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
from rich.markup import escape

from tfaccel.core.workload import shapes
from tfaccel.measure.tables import terminal_table
from tfaccel.measure.timing import Clock
from tfaccel.passes.precision.loss_scale import loss_scale_of
from tfaccel.profiling.figures import Figures
from tfaccel.profiling.growth import Growth
from tfaccel.profiling.key_figures import key_figures
from tfaccel.profiling.ledger import Ledger
from tfaccel.profiling.live import Every, LiveComparison
from tfaccel.profiling.meter import Meter
from tfaccel.profiling.records import FILE_NAME, SCHEMA, JsonLines, Records
from tfaccel.profiling.sampling import WorkerInput
from tfaccel.profiling.scaling import Scaling, measure_scaling
from tfaccel.profiling.tensorboard import Scalars
from tfaccel.profiling.window import TraceWindow
from tfaccel.profiling.words import sentence, verdict
from tfaccel.profiling.work import Work, work_of
from tfaccel.steps.remembered import Memory
from tfaccel.steps.worker_agreement import agreement_of
from tfaccel.system import notices
from tfaccel.system.machine import machine_facts
from tfaccel.training.step_dispatcher import StepDispatcher

# Counting FLOPs traces the forward pass once more: about this share of a first step,
# which traces the backward pass and the updates too.
_ANALYSIS_OF_FIRST_STEP = 0.3
# The share of the time so far that counting may take before the training's end.
_ANALYSIS_SHARE = 0.02
# The share of the time so far that timing one replica alone may take.
_SCALING_SHARE = 0.05


class Profile:
    """Measures one fit.

    Args:
        model: whose fit begins.
        epochs, steps_per_epoch: of the fit; None where unknown.
        log_dir: the folder to write to; None for none.
        compare_every: see `ProfilerCallback`.
        update_freq: batches after which a record is written; None for epochs only.
        profile_batches: the first and the last batch (from 1) to trace; None for none.
        verbose: 0 for silence.
        clock: seconds.
    """

    def __init__(
        self,
        model: keras.Model,
        epochs: int | None,
        steps_per_epoch: int | None,
        *,
        log_dir: pathlib.Path | None,
        compare_every: Every,
        update_freq: int | None,
        profile_batches: tuple[int, int] | None,
        verbose: int,
        clock: Clock,
    ):
        self._agreement = agreement = agreement_of(model.distribute_strategy)
        # As it is when a fit begins: its validation divides another dataset.
        self._reads_all = bool(getattr(model.distribute_strategy, "reads_all", False))
        self._worker_input: WorkerInput | None = None
        if not agreement.is_chief:
            log_dir, verbose = None, 0
        self._wants_scaling = isinstance(compare_every, int)
        if not agreement.is_alone:
            compare_every = None  # workers would have to agree on it, before each step
        self._model = model
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._update_freq = update_freq
        self._verbose = verbose
        self._clock = clock
        self._started = datetime.datetime.now(datetime.timezone.utc)
        self._file = JsonLines(log_dir / FILE_NAME) if log_dir else None
        self._scalars = Scalars(log_dir) if log_dir else None
        self._function = StepDispatcher.of(model)
        self._ledger = Ledger(LiveComparison(compare_every), self._write)
        self._window = TraceWindow(log_dir, profile_batches, compare_every is not None, self._write)
        steps = epochs * steps_per_epoch if epochs and steps_per_epoch else None
        specs = Memory.of(model, self._function.own).specs
        self._meter = Meter(self._function, model, self._ledger, self._window, clock, steps, specs)
        self._work, self._analysis_seconds = Work(), 0.0
        self._scaling = Scaling(model.distribute_strategy.num_replicas_in_sync)
        self._shared_batch: Any = None
        self._loss_scale: float | None = None
        self._growth = Growth()
        self._steps_of_epoch: int | None = None  # of the last one that ended
        self._epoch = 0
        self._line = ""
        self._has_begun = False
        self._function.watch(self._step)

    def figures(self) -> Figures:
        """Everything measured so far."""
        built = self._function.built
        scale = loss_scale_of(self._model, built.scratch if built else {})
        self._loss_scale = self._loss_scale if scale is None else scale
        return Figures(
            self._meter,
            self._ledger,
            self._work,
            self._analysis_seconds,
            self._loss_scale,
            self._growth,
            self._steps_per_epoch or self._steps_of_epoch,
            self._scaling,
            self._worker_input,
        )

    def begin_epoch(self, epoch: int) -> None:
        """Begins an epoch, and prints the line on the one before, below Keras's own."""
        self._say_line()
        self._epoch = epoch
        self._meter.begin_epoch(self._steps_per_epoch)

    def end_epoch(self) -> None:
        """Ends an epoch."""
        self._steps_of_epoch = self._meter.steps_in_epoch
        estimate = _ANALYSIS_OF_FIRST_STEP * (self._ledger.first_step_seconds or 0.0)
        if estimate <= _ANALYSIS_SHARE * self._ledger.elapsed_seconds:
            self._analyse()
        self._close_interval()
        self._line = sentence(self.figures().interval(self._epoch, self._ledger.epoch))

    def end(self) -> None:
        """Ends the fit: gives the train function back and prints the results."""
        self._function.watch(None)
        self._worker_input = self._meter.own_waits.of_all(self._agreement, self._reads_all)
        self._window.close()
        self._analyse()
        self._measure_scaling()
        summary = self.figures().summary()
        self._write({"kind": "summary"} | summary)
        for output in (self._file, self._scalars):
            if output is not None:
                output.close()
        if self._verbose:
            self._say_line()
            self._say_result(summary)

    def _say_result(self, summary: dict[str, Any]) -> None:
        """Prints the results in the words of the report."""
        report = self._ledger.report
        tuning = [] if report is None else [{"report": report.to_dict()}]
        records = Records(self._run_record(), tuning=tuning, summary=summary)
        rows = [(figure.label, figure.value, figure.note) for figure in key_figures(records)]
        said = escape(f"tfaccel: {verdict(records)}")
        notices.show(said, terminal_table(("figure", "value", ""), rows), *self._window.tables())

    def _step(self, iterator: Any) -> Any:
        logs = self._meter(iterator)
        self._growth.note(self._ledger.steps)
        if self._update_freq and self._ledger.interval.batches >= self._update_freq:
            self._close_interval()
        return logs

    def _close_interval(self) -> None:
        record = self.figures().interval(self._epoch, self._ledger.interval)
        self._write(record)
        if self._scalars is not None:
            self._scalars.write(record)
        self._ledger.begin_interval()

    def _write(self, record: Mapping[str, Any]) -> None:
        """Writes a record; the first one in a file is about the run itself.

        Without that one it would be of the run before, so where it found no room it is tried again.
        """
        if self._file is None:
            return
        self._has_begun = self._has_begun or self._file.write(self._run_record())
        if self._has_begun:
            self._file.write(record)

    def _run_record(self) -> dict[str, Any]:
        return {
            "kind": "run",
            "schema": SCHEMA,
            "started": self._started.isoformat(timespec="seconds"),
            "machine": machine_facts(),
            "model": {
                "name": self._model.name,
                "parameters": self._model.count_params() if self._model.built else None,
            },
            "batch_size": self._meter.batch_size,
            "epochs": self._epochs,
            "steps_per_epoch": self._steps_per_epoch,
        }

    def _analyse(self) -> None:
        """Counts the FLOPs of a step, once, as soon as there is a batch."""
        batch, self._meter.first_batch = self._meter.first_batch, None
        if batch is None:
            return
        start = self._clock()
        memory, key = Memory.of(self._model, self._function.own), (shapes(batch), self._ledger.plan)
        self._work = memory.work.get(key) or work_of(self._model, batch, self._ledger.plan)
        if self._work.flops_per_step is not None:
            memory.work[key] = self._work
        self._analysis_seconds += self._clock() - start
        if self._scaling.replicas > 1:
            self._shared_batch = batch

    def _measure_scaling(self) -> None:
        """Times one replica alone, if its trace costs little or comparisons are wanted."""
        batch, self._shared_batch = self._shared_batch, None
        first, elapsed = self._ledger.first_step_seconds or 0.0, self._ledger.elapsed_seconds
        if batch is None or not (self._wants_scaling or first <= _SCALING_SHARE * elapsed):
            return
        start = self._clock()
        self._scaling = measure_scaling(
            self._model, batch, self._meter.element_spec, self._ledger.plan, self._clock
        )
        self._analysis_seconds += self._clock() - start

    def _say_line(self) -> None:
        if self._verbose and self._line:
            notices.say(self._line)
        self._line = ""
