"""What `tfaccel bench --workers` found."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import rich.console
from rich.markup import escape

from tfaccel.cli._bench_result import machine_line
from tfaccel.cli.scaling.cost import Parts, RingCost, fitted
from tfaccel.measure.tables import markdown_table, terminal_table
from tfaccel.measure.units import milliseconds, number, size

SCHEMA = 1
WORKERS = (8, 64, 512)
GIGABITS_PER_SECOND = (10, 100)
_MEASURED = (
    *("workers", "step, ms", "samples/s", "efficiency"),
    *("compute, ms", "all-reduce, ms", "waiting, ms"),
)
_PREDICTED = ("workers", "Gbit/s", "step, ms", "samples/s", "efficiency")


@dataclasses.dataclass(frozen=True)
class ScalingRow:
    """The measured steps of some number of workers."""

    workers: int
    step_seconds: float  # the median, of the slowest worker
    samples_per_second: float  # of all
    parts: Parts


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The predicted steps of workers, each on a machine of its own, on links of one speed."""

    workers: int
    gigabits_per_second: float
    step_seconds: float
    samples_per_second: float
    efficiency: float  # compute, over the step


@dataclasses.dataclass(frozen=True)
class ScalingResult:
    """How a model's training step scales."""

    model: str  # MODEL as it was given
    parameters: int  # the model's weights
    gradient_bytes: int  # what a worker sends in a step, at least
    batch_size: int  # samples of a worker
    source: str  # where they are from
    machine: Mapping[str, Any]  # `tfaccel.system.machine.machine_facts()`
    command: str  # measures the same again
    seconds: float  # what all took
    rows: tuple[ScalingRow, ...]  # by the number of workers
    cost: RingCost | None = None  # None where too little was measured to tell
    predictions: tuple[Prediction, ...] = ()
    notes: tuple[str, ...] = ()  # what is assumed, and what is to be known

    def to_json(self) -> str:
        """Everything, as JSON text."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=2)

    def to_markdown(self) -> str:
        """The tables and the notes, as Markdown."""
        lines = [self._title()]
        for headings, cells in self._tables():
            lines += ["", markdown_table(headings, cells, numbers=headings)]
        return "\n".join([*lines, "", *(f"- {line}" for line in self._lines()), ""])

    def __rich__(self) -> rich.console.Group:
        tables = [terminal_table(heads, cells, numbers=heads) for heads, cells in self._tables()]
        lines = (f"  {escape(line)}" for line in self._lines())
        return rich.console.Group(escape(self._title()), *tables, *lines)

    def _tables(self) -> Iterable[tuple[Sequence[str], list[Sequence[str]]]]:
        yield _MEASURED, [_measured_cells(row, self.rows[0]) for row in self.rows]
        if self.predictions:
            yield _PREDICTED, [_predicted_cells(each) for each in self.predictions]

    def _title(self) -> str:
        return (
            f"{self.model}: {self.parameters:,} parameters, {size(self.gradient_bytes)} of "
            f"gradients, batches of {self.batch_size} a worker from {self.source}"
        )

    def _lines(self) -> Iterable[str]:
        yield from self.notes
        yield f"On {machine_line(self.machine)}."
        yield f"Took {self.seconds:.0f} s. Again: {self.command}"


def predicted(
    rows: Sequence[ScalingRow], gradient_bytes: int
) -> tuple[RingCost | None, tuple[Prediction, ...], list[str]]:
    """A model of the measured all-reduces, its predictions for more workers, and notes on it."""
    try:
        cost = fitted(
            [row.workers for row in rows], [row.parts.all_reduce for row in rows], gradient_bytes
        )
    except ValueError as error:
        return None, (), [f"Nothing is predicted: {error}."]
    first = rows[0]
    samples = first.samples_per_second * first.step_seconds / first.workers
    found = []
    for workers in WORKERS:
        for link in GIGABITS_PER_SECOND:
            step = first.parts.compute + cost.seconds(workers, link)
            efficiency = first.parts.compute / step
            found.append(Prediction(workers, link, step, workers * samples / step, efficiency))
    return cost, tuple(found), _assumed(cost, first)


def _assumed(cost: RingCost, first: ScalingRow) -> list[str]:
    rate = "no limit"
    if cost.seconds_per_byte:
        rate = f"{number(8e-9 / cost.seconds_per_byte)} Gbit/s"
    return [
        "All-reduce here, as a ring of n workers, 2 (n-1)/n * bytes / bandwidth + 2 (n-1) * "
        f"latency: bandwidth {rate}, latency {milliseconds(cost.latency_seconds)}, off by "
        f"{milliseconds(round(cost.residual_seconds, 9))} (root mean square) at {cost.points} "
        f"points{', which two unknowns always meet' if cost.points == 2 else ''}.",
        f"Predicted for workers that compute for {milliseconds(first.parts.compute)} each, as here "
        f"in the row of {first.workers}, on a machine of their own; the link's time comes on top "
        "of the all-reduce here, messages take no longer on it, none waits for a slower one, and "
        "no more of the all-reduce is hidden behind computing than here.",
    ]


def _measured_cells(row: ScalingRow, first: ScalingRow) -> list[str]:
    each = row.samples_per_second / row.workers
    efficiency = each / (first.samples_per_second / first.workers)
    times = (row.parts.compute, row.parts.all_reduce, row.parts.waiting)
    return [
        str(row.workers),
        number(1e3 * row.step_seconds),
        number(row.samples_per_second),
        f"{efficiency:.0%}",
        *(number(1e3 * seconds) for seconds in times),
    ]


def _predicted_cells(each: Prediction) -> list[str]:
    return [
        str(each.workers),
        f"{each.gigabits_per_second:g}",
        number(1e3 * each.step_seconds),
        number(each.samples_per_second),
        f"{each.efficiency:.0%}",
    ]
