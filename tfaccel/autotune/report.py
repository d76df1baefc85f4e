"""The Report of what was tried and won, as a table and as JSON."""

import dataclasses
import json
import math
from collections.abc import Collection, Iterator
from typing import Any

import rich.console
from rich.markup import escape

from tfaccel.autotune.trial import Trial
from tfaccel.core.plan import Plan
from tfaccel.core.unsupported import Refusal
from tfaccel.measure.numerics import Drift
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.tables import markdown_table, terminal_table
from tfaccel.measure.timing import Speedup
from tfaccel.measure.units import milliseconds, ratio, size
from tfaccel.system import notices
from tfaccel.system.json_files import parsed, typed

SCHEMA = 1
# Lines of findings on a terminal; a deep net has one a layer.
_SHOWN_FINDINGS = 6
# A shorter time is not worth telling.
_LEAST_TOLD_SECONDS = 0.05
_NUMBERS = ("step", "predicted", "speedup", "drift", "compile")
HEADINGS = ("plan", *_NUMBERS, "verdict")
# Headings for predictions; empty columns are left out.
_TIMES = ("p50", "p90", "p99")
_MEMORY = "memory"
_COSTS = ("set-up", _MEMORY, "on disk")
_OF_PREDICTIONS = ("batch", "speedup", "error", "top-1", "metric", *_TIMES, *_COSTS)
_PREDICTION_HEADINGS = ("plan", *_OF_PREDICTIONS, "verdict")


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of tuning one workload.

    Attributes:
        trials: what was tried, in order; the first is the baseline.
        plan: the chosen plan; `Plan()` when the step stays as it was.
        gain: the chosen plan's speedup, measured again after it was chosen.
        tuning_seconds: that the training waited: trials, traces, compiling, and the work before
            and after them, up to the first step under the choice.
        note: one sentence on how the choice came about.
        complete: whether there was time to try everything.
        predicts: whether it is about batches to predict and not about steps of training.
        cached: whether the trials took place in another training.
    """

    trials: tuple[Trial, ...]
    plan: Plan
    gain: Speedup = Speedup()  # noqa: RUF009 (frozen)
    tuning_seconds: float = 0.0
    note: str = ""
    complete: bool = True
    predicts: bool = False
    cached: bool = False

    @property
    def speedup(self) -> float:
        """How many times faster a step is than before; 1.0 for the baseline."""
        return self.gain.median

    @property
    def speedup_interval(self) -> tuple[float, float]:
        """The ends of the speedup's 95 % confidence interval."""
        return self.gain.low, self.gain.high

    @property
    def baseline_step_seconds(self) -> float:
        """The untouched step's time."""
        return self.trials[0].step_seconds or 0.0 if self.trials else 0.0

    @property
    def break_even_steps(self) -> int | None:
        """Steps after which tuning has paid for itself; None when it never does."""
        saved = self.saved_seconds(1)
        return None if saved <= 0 else -int(-self.tuning_seconds // saved)

    def saved_seconds(self, steps: int) -> float:
        """The seconds that some steps under the plan save against as many untouched ones."""
        kept = 1 - 1 / self.speedup if self.speedup > 0 else 0.0
        return steps * self.baseline_step_seconds * kept

    def with_note(self, more: str) -> "Report":
        """The report with one more sentence in its note; itself if that is empty."""
        return dataclasses.replace(self, note=f"{self.note} {more}".strip()) if more else self

    def saved(self, disk_bytes: int) -> "Report":
        """The report with what the chosen plan takes on disk."""
        trials = [
            dataclasses.replace(trial, disk_bytes=disk_bytes) if trial.plan == self.plan else trial
            for trial in self.trials
        ]
        return dataclasses.replace(self, trials=tuple(trials))

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "schema": SCHEMA,
            "plan": json.loads(self.plan.to_json()),
            "gain": dataclasses.asdict(self.gain),
            "tuning_seconds": self.tuning_seconds,
            "note": self.note,
            "complete": self.complete,
            "predicts": self.predicts,
            "cached": self.cached,
            "trials": [_trial_to_dict(trial) for trial in self.trials],
        }

    def to_json(self) -> str:
        """The report as JSON text, readable by `from_json`."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Reads `to_json`'s text.

        Raises:
            ValueError: the text is no report, or of another schema.
        """
        with parsed(text, SCHEMA, "a tfaccel report") as data:
            found = cls(
                trials=tuple(_trial_from_dict(trial) for trial in data["trials"]),
                plan=Plan.from_json(json.dumps(data["plan"])),
                gain=typed(Speedup(**data["gain"])),
                tuning_seconds=float(data["tuning_seconds"]),
                note=str(data["note"]),
                complete=bool(data["complete"]),
                predicts=bool(data.get("predicts", False)),
                cached=bool(data.get("cached", False)),
            )
            numbers = (found.gain.median, found.tuning_seconds, found.baseline_step_seconds)
            if not all(map(math.isfinite, numbers)) or min(numbers) < 0:
                raise ValueError(f"times and gains must be finite. Received: {numbers}")
            return found

    def rows(self) -> list[tuple[str, ...]]:
        """The table's cells, in the order of its headings; of what was tried."""
        return self.table()[1]

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The table's headings and cells."""
        row = _prediction_row if self.predicts else _row
        rows = [row(trial, trial.plan == self.plan) for trial in self.tried()]
        if not self.predicts:
            return HEADINGS, rows
        columns = list(zip(_PREDICTION_HEADINGS, *rows, strict=True))
        headings, *rows = zip(*(c for c in columns if any(c[1:]) or not rows), strict=True)
        return headings, rows

    def tried(self) -> list[Trial]:
        """The trials of the table: those of plans that no pass refuses."""
        return [trial for trial in self.trials if trial.was_tried]

    def summary(self) -> str:
        """One or two sentences: what was chosen, what it wins, what it cost."""
        one = "batch" if self.predicts else "step"
        if self.plan.is_baseline:
            said = (
                "Predictions are made by the model's own function, unchanged."
                if self.predicts
                else "Training goes on with your own step, unchanged."
            )
        else:
            goes_on = "Predictions are made under" if self.predicts else "Training goes on with"
            # Nothing is known of a plan that was given and never tried.
            gain = f": a {one} is {self.gain} as fast" if self.gain.pairs else ""
            paid, even = "", self.break_even_steps
            if even and not self.cached:
                paid = f"; tuning is paid back after {even:,} {one}{'s' if one == 'step' else 'es'}"
            said = f"{goes_on} {self.plan}{gain}{paid}."
        told = self.tuning_seconds >= _LEAST_TOLD_SECONDS
        what = "Its trace took" if self.cached else "Tuning took"
        cost = f" {what} {self.tuning_seconds:.1f} s." if told else ""
        return f"{said}{cost}" + (f" {self.note}" if self.note else "")

    def reasons(self) -> list[str]:
        """A line for each trial that has something to explain."""
        return [_reason(trial) for trial in self.trials if trial.reason]

    def findings(self) -> tuple[str, ...]:
        """What the passes of the chosen plan found out about the layers, a line each."""
        chosen = (trial.findings for trial in self.trials if trial.plan == self.plan)
        return next(chosen, ())

    def to_markdown(self) -> str:
        """The table, the reasons, the summary and the findings as Markdown."""
        table = markdown_table(*self.table(), numbers=(*_NUMBERS, *_OF_PREDICTIONS))
        lines = [table, "", *(f"- {r}" for r in self.reasons()), "", self.summary(), ""]
        found = self.findings()
        return "\n".join([*lines, *(f"- {line}" for line in found), *([""] if found else [])])

    def _narrow(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The table without the columns that a terminal has no room for."""
        if self.predicts:
            return _without((*_TIMES, _MEMORY), *self.table())
        predicts = any(trial.predicted_gain is not None for trial in self.trials)
        left_out = HEADINGS.index("compile" if predicts else "predicted")
        # A pass and its options are two words, so that neither is broken.
        rows = [(row[0].replace("(", " ("), *row[1:]) for row in self.rows()]
        return _without(HEADINGS[left_out : left_out + 1], HEADINGS, rows)

    def _latencies(self) -> Iterator[str]:
        """Percentiles and memory of the baseline and the chosen plan, which a terminal lacks."""
        for trial in self.tried():
            chosen = trial.plan.is_baseline or trial.plan == self.plan
            if chosen and trial.latency_seconds is not None:
                times = zip(_TIMES, map(milliseconds, trial.latency_seconds), strict=True)
                told = [f"{name} {time}" for name, time in times]
                if trial.peak_memory_bytes is not None:
                    told.append(f"{_MEMORY} {size(trial.peak_memory_bytes)}")
                yield f"{trial.plan}: {', '.join(told)}"

    def __rich__(self) -> rich.console.Group:
        return self.shown()

    def shown(self, detailed: bool = False) -> rich.console.Group:
        """What a terminal shows.

        Args:
            detailed: whether all columns, reasons and findings are shown, at any length.
        """
        shown: list[rich.console.RenderableType] = []
        tells_more = detailed or self.complete or len(self.tried()) > 1
        if tells_more and len(self.trials) > 1 and self.tuning_seconds and not self.cached:
            chosen = [i for i, trial in enumerate(self.tried()) if trial.plan == self.plan]
            numbers = (*_NUMBERS, *_OF_PREDICTIONS)
            cells = self.table() if detailed else self._narrow()
            told = [*self._latencies(), *(self.reasons() if detailed else self._short_reasons())]
            lines = [*told, "", *(self.findings() if detailed else self._short_findings())]
            table = terminal_table(*cells, numbers=numbers, bold=chosen)
            shown = [table, *(f"  {escape(line)}".rstrip() for line in lines)]
        return rich.console.Group(*shown, escape(f"tfaccel: {self.summary()}"))

    def _short_reasons(self) -> Iterator[str]:
        """The reasons, with the passes that the model has nothing for in one line."""
        nothing = [str(one.plan) for one in self.trials if one.outcome is Outcome.IRRELEVANT]
        yield from (
            _reason(one)
            for one in self.trials
            if one.reason and one.outcome is not Outcome.IRRELEVANT
        )
        if nothing:
            yield f"This model has nothing to do for {', '.join(nothing)}."

    def _short_findings(self) -> Iterator[str]:
        found = self.findings()
        # The reasons in brackets take more room than a terminal has.
        heads = [line.partition(" [")[0] for line in found[:_SHOWN_FINDINGS]]
        yield from heads
        if heads != list(found):
            more = len(found) - len(heads)
            left_out = f"{more} more, and the" if more else "the"
            yield f"... {left_out} reasons: Report.findings()"


def show(report: Report, verbose: int = 1) -> None:
    """Prints a report, on a line of its own beside Keras's progress bar.

    Args:
        report: what to print.
        verbose: 2 prints all of it.
    """
    notices.show("", report.shown(detailed=verbose >= 2))


def _reason(trial: Trial) -> str:
    said = " refuses" if trial.outcome is Outcome.REFUSED else ""
    return f"{trial.plan}{said}: {trial.reason}"


def _row(trial: Trial, chosen: bool) -> tuple[str, ...]:
    step = "" if trial.step_seconds is None else milliseconds(trial.step_seconds)
    gain = "" if trial.speedup is None else str(trial.speedup)
    drift = "" if trial.drift is None else f"{trial.drift.main:.1e}"
    compiling = f"{trial.compile_seconds:.1f} s" if trial.compile_seconds else ""
    verdict = "chosen" if chosen else trial.outcome.value
    predicted = "" if trial.predicted_gain is None else ratio(trial.predicted_gain)
    return str(trial.plan), step, predicted, gain, drift, compiling, verdict


def _prediction_row(trial: Trial, chosen: bool) -> tuple[str, ...]:
    plan, batch, _, gain, error, compiling, verdict = _row(trial, chosen)
    same = "" if trial.top1_agreement is None else f"{100 * trial.top1_agreement:.1f} %"
    metric = "" if trial.metric is None else f"{trial.metric:.4f}"
    times = [milliseconds(seconds) for seconds in trial.latency_seconds or ()]
    on_disk = "" if trial.disk_bytes is None else size(trial.disk_bytes)
    peak = "" if trial.peak_memory_bytes is None else size(trial.peak_memory_bytes)
    costs = (compiling, peak, on_disk)
    return plan, batch, gain, error, same, metric, *(times or [""] * 3), *costs, verdict


def _without(
    names: Collection[str], headings: tuple[str, ...], rows: list[tuple[str, ...]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A table less some columns."""
    kept = [place for place, heading in enumerate(headings) if heading not in names]
    headings, *rows = (tuple(cells[place] for place in kept) for cells in (headings, *rows))
    return headings, rows


def _trial_to_dict(trial: Trial) -> dict[str, Any]:
    data = {field.name: getattr(trial, field.name) for field in dataclasses.fields(trial)}
    return data | {
        "plan": json.loads(trial.plan.to_json()),
        "outcome": trial.outcome.value,
        "refusal": None if trial.refusal is None else trial.refusal.value,
        "speedup": None if trial.speedup is None else dataclasses.asdict(trial.speedup),
        "drift": None if trial.drift is None else dataclasses.asdict(trial.drift),
    }


def _trial_from_dict(data: dict[str, Any]) -> Trial:
    return typed(
        Trial(
            **data
            | {
                "plan": Plan.from_json(json.dumps(data["plan"])),
                "outcome": Outcome(data["outcome"]),
                "refusal": Refusal(data["refusal"]) if data.get("refusal") else None,
                "speedup": None if data["speedup"] is None else typed(Speedup(**data["speedup"])),
                "drift": None if data["drift"] is None else typed(Drift(**data["drift"])),
                "findings": tuple(data.get("findings", ())),
                "predicted_gain": data.get("predicted_gain"),
                "latency_seconds": _times(data.get("latency_seconds")),
            }
        )
    )


def _times(found: Any) -> tuple[float, float, float] | None:
    if found is None:
        return None
    half, most, nearly_all = map(float, found)
    return half, most, nearly_all
