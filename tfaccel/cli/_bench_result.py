"""What `tfaccel bench` found."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import rich.console
from rich.markup import escape

from tfaccel.measure.tables import markdown_table, terminal_table
from tfaccel.measure.units import number, ratio, size

SCHEMA = 1
_HEADINGS = (
    *("device", "plan", "step, ms", "samples/s", "speedup [95 %]", "compile, s", "drift"),
    *("peak", "verdict"),
)
_NUMBERS = _HEADINGS[2:8]


@dataclasses.dataclass(frozen=True)
class BenchRow:
    """One plan on one device."""

    device: str  # `"CPU"` or `"GPU"`
    plan: str  # what was applied; `"baseline"` is stock Keras
    verdict: str  # how the trial ended; `"chosen"` for the tuner's choice
    reason: str = ""  # why; empty where there is nothing to explain
    step_seconds: float | None = None  # the median; None where the plan was not timed
    step_seconds_interval: tuple[float, float] | None = None  # its 95 % confidence interval
    samples_per_second: float | None = None  # at the median step
    speedup: float | None = None  # against stock Keras on the same device, measured in turns
    speedup_interval: tuple[float, float] | None = None  # its 95 % confidence interval
    compile_seconds: float | None = None  # what the first step took longer than the others
    # The relative difference of all gradients from stock Keras's; None where the plan is not
    # faster, and so was not compared.
    drift: float | None = None
    peak_bytes: int | None = None  # the device's peak memory; None on a CPU

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "BenchRow":
        """A row that was JSON, where tuples are lists."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        return cls(**values)

    def cells(self) -> tuple[str, ...]:
        """The row's cells in the table."""
        return (
            self.device,
            self.plan,
            _with_interval(self.step_seconds, self.step_seconds_interval, _in_milliseconds),
            "" if self.samples_per_second is None else f"{self.samples_per_second:.0f}",
            _with_interval(self.speedup, self.speedup_interval, ratio),
            f"{self.compile_seconds:.1f}" if self.compile_seconds else "",
            "" if self.drift is None else f"{self.drift:.1e}",
            "" if self.peak_bytes is None else size(self.peak_bytes),
            self.verdict,
        )


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """Stock Keras, each pass and the chosen plan, side by side."""

    model: str  # MODEL as it was given
    parameters: int  # the model's weights
    batch_size: int  # samples in a batch
    source: str  # where the samples are from
    machine: Mapping[str, Any]  # `tfaccel.system.machine.machine_facts()`
    command: str  # measures the same again
    seconds: float  # what all took
    rows: tuple[BenchRow, ...]  # one for each device and plan
    notes: tuple[str, ...] = ()  # what was chosen, and what was not tried

    def to_json(self) -> str:
        """Everything, as JSON text."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=2)

    def to_markdown(self) -> str:
        """The table, the reasons and the notes, as Markdown."""
        table = markdown_table(_HEADINGS, [row.cells() for row in self.rows], numbers=_NUMBERS)
        lines = (f"- {line}" for line in self._lines())
        return "\n".join([self._title(), "", table, "", *lines, ""])

    def __rich__(self) -> rich.console.Group:
        best = [index for index, row in enumerate(self.rows) if row.verdict == "chosen"]
        cells = [row.cells() for row in self.rows]
        table = terminal_table(_HEADINGS, cells, numbers=_NUMBERS, bold=best)
        lines = (f"  {escape(line)}" for line in self._lines())
        return rich.console.Group(escape(self._title()), table, *lines)

    def _title(self) -> str:
        return (
            f"{self.model}: {self.parameters:,} parameters, batches of {self.batch_size} from "
            f"{self.source}"
        )

    def _lines(self) -> Iterable[str]:
        reasons = {f"{row.plan}: {row.reason}": None for row in self.rows if row.reason}
        yield from reasons
        yield from self.notes
        yield f"On {machine_line(self.machine)}."
        yield f"Took {self.seconds:.0f} s. Again: {self.command}"


def machine_line(machine: Mapping[str, Any]) -> str:
    """The machine in one line; what is not known is left out."""
    chips = [f"{machine.get('cpu') or 'unknown CPU'}, {machine.get('cores') or '?'} cores"]
    chips += [gpu.get("name", "unknown GPU") for gpu in machine.get("gpus") or ()]
    isa = f" ({', '.join(machine['isa'])})" if machine.get("isa") else ""
    versions = (("TensorFlow", "tensorflow"), ("Keras", "keras"), ("Python", "python"))
    known = [f"{name} {machine[key]}" for name, key in versions if machine.get(key)]
    return ", ".join([" + ".join(chips) + isa, *known])


def _with_interval(value: float | None, interval: tuple[float, float] | None, show: Any) -> str:
    if value is None:
        return ""
    if interval is None:
        return show(value)
    low, high = (show(end).removesuffix("x") for end in interval)
    return f"{show(value)} [{low}, {high}]"


def _in_milliseconds(seconds: float) -> str:
    return number(1e3 * seconds)
