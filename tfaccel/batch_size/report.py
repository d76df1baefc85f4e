"""The report of max_batch_size."""

import dataclasses

import rich.console
from rich.markup import escape

from tfaccel.batch_size.search import SizeTrial
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.tables import markdown_table, terminal_table
from tfaccel.measure.units import milliseconds, size
from tfaccel.system.json_files import parsed, to_text

SCHEMA = 1
_HEADINGS = ("batch size", "memory", "step", "outcome")


@dataclasses.dataclass(frozen=True)
class BatchSizeReport:
    """The largest batch that fits, and how it was found.

    Attributes:
        trials: the batch sizes that were tried or ruled out, in order.
        headroom: the share of the largest that is recommended.
        limited_by: `"memory"`, or `"limit"` where the largest size allowed fits.
        memory_limit_bytes: the most that a step may take; None for no such bound.
    """

    trials: tuple[SizeTrial, ...]
    headroom: float
    limited_by: str
    memory_limit_bytes: int | None = None

    @property
    def largest(self) -> int:
        """The largest batch size that fits; 0 where none does."""
        fits = (t.batch_size for t in self.trials if t.verdict is Outcome.FITS)
        return max(fits, default=0)

    @property
    def batch_size(self) -> int:
        """The recommended size: the largest, less the headroom if memory is the limit."""
        if self.limited_by == "limit" or not self.largest:
            return self.largest
        return max(1, int(self.headroom * self.largest))

    def summary(self) -> str:
        """What was found, and what would allow for more."""
        if not self.largest:
            return (
                "No batch fits, not even of one row: a smaller model, 16-bit precision or the "
                'pass recompute (plan=["recompute"]) needs less.'
            )
        if self.limited_by == "limit":
            return f"A batch of {self.largest} fits, the largest that was to be tried."
        return (
            f"A batch of {self.largest} is the largest that fits; {self.batch_size} leaves "
            f"{1 - self.headroom:.0%} for what else a training holds."
        )

    def rows(self) -> list[tuple[str, ...]]:
        """The table's cells."""
        return [_cells(trial) for trial in self.trials]

    def to_json(self) -> str:
        """The report as JSON text, readable by `from_json`."""
        trials = [
            dataclasses.asdict(trial) | {"verdict": trial.verdict.value} for trial in self.trials
        ]
        derived = {"batch_size": self.batch_size, "largest": self.largest}
        fields = dataclasses.asdict(self) | {"trials": trials}
        return to_text(SCHEMA, derived | fields)

    @classmethod
    def from_json(cls, text: str) -> "BatchSizeReport":
        """Reads `to_json`'s text.

        Raises:
            ValueError: the text is no such report, or of another schema.
        """
        with parsed(text, SCHEMA, "a report of max_batch_size") as data:
            trials = tuple(
                SizeTrial(**trial | {"verdict": Outcome(trial["verdict"])})
                for trial in data["trials"]
            )
            return cls(trials, data["headroom"], data["limited_by"], data["memory_limit_bytes"])

    def to_markdown(self) -> str:
        """The table and the summary as Markdown."""
        table = markdown_table(_HEADINGS, self.rows(), numbers=_HEADINGS[:3])
        return f"{table}\n\n{self.summary()}\n"

    def __rich__(self) -> rich.console.Group:
        best = [i for i, trial in enumerate(self.trials) if trial.batch_size == self.largest]
        table = terminal_table(_HEADINGS, self.rows(), numbers=_HEADINGS[:3], bold=best)
        return rich.console.Group(table, escape(f"tfaccel: {self.summary()}"))


def _cells(trial: SizeTrial) -> tuple[str, ...]:
    peak = "" if trial.peak_bytes is None else size(trial.peak_bytes)
    step = "" if trial.step_seconds is None else milliseconds(trial.step_seconds)
    return str(trial.batch_size), peak, step, trial.verdict.value
