"""Findings: what is wrong with data, where, and what was not looked at."""

import dataclasses
import enum
import re
from collections.abc import Mapping

import rich.console
from rich.markup import escape

from tfaccel.measure.tables import markdown_table, terminal_table
from tfaccel.system.json_files import parsed, to_text

# What TensorFlow says before the reason: the node that failed, and the way to it.
_NODE = re.compile(r"^(\{\{[^}]*\}\} ?)+")
_WAY = re.compile(r"^Error in user-defined function .* with iterator: \S+: ")
SCHEMA = 1
# Rows of a table; JSON has them all.
_SHOWN = 20
_HEADINGS = ("where", "fault", "reason")


class FaultKind(enum.Enum):
    """What is wrong with a sample, a batch or a file."""

    NAN = "nan"
    INF = "inf"
    SHAPE = "shape"
    DTYPE = "dtype"
    RANGE = "range"
    LABEL = "label"
    EMPTY = "empty"
    UNREADABLE = "unreadable"
    HEADER = "header"
    TRUNCATED = "truncated"
    HUGE = "huge"
    SAMPLE_RATE = "sample rate"
    ENCODING = "encoding"


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        kind: what sort of thing.
        reason: a sentence part that says what was found, and what it breaks.
        component: which part of a sample: `x`, `y`, `sample_weight`, `x['image']`; empty
            for all of it.
        index: of the sample in the data (of the file in the folder); None where it
            concerns no single sample.
        batch: of the batch; None where the data has no batches.
        path: of the file; None for data in memory.
    """

    kind: FaultKind
    reason: str
    component: str = ""
    index: int | None = None
    batch: int | None = None
    path: str | None = None

    @property
    def where(self) -> str:
        """The place, in words."""
        parts = [] if self.path is None else [self.path]
        if self.index is not None and (self.path is None or self.component):
            parts.append(f"sample {self.index}")
        if self.batch is not None:
            parts.append(f"batch {self.batch}")
        return ", ".join([*parts, self.component] if self.component else parts) or "the data"


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a check found.

    Attributes:
        faults: in the order in which they were met.
        counts: how many there are of each kind, also of those that are not listed.
        source: what was looked at, in words.
        samples: how many samples (files of a folder) were looked at.
        total: how many there are; None where unknown.
        not_looked_at: what was not looked at, and why; a sentence each.
        dropped: how many samples were left out on the way to the model.
        seconds: how long looking took.
    """

    faults: tuple[Fault, ...] = ()
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    source: str = "data"
    samples: int = 0
    total: int | None = None
    not_looked_at: tuple[str, ...] = ()
    dropped: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with what was looked at."""
        return not self.counts

    @property
    def is_complete(self) -> bool:
        """Whether everything was looked at."""
        return not self.not_looked_at

    @property
    def indices(self) -> tuple[int, ...]:
        """The samples with a listed fault, in order, once each."""
        return tuple(sorted({f.index for f in self.faults if f.index is not None}))

    @property
    def unlisted(self) -> int:
        """How many faults are counted and not listed."""
        return sum(self.counts.values()) - len(self.faults)

    def summary(self) -> str:
        """What was looked at, what is wrong, what was dropped and what is unknown."""
        of = "" if self.total in (None, self.samples) else f" of {self.total:,}"
        said = f"{self.source}: {self.samples:,}{of} looked at in {self.seconds:.1f} s, "
        counted = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items())
        count = sum(self.counts.values())
        said += f"{count:,} fault{'s' * (count > 1)} ({counted})" if counted else "no fault"
        said += f"; {self.dropped:,} of the samples dropped." if self.dropped else "."
        if self.unlisted:
            said += f" {self.unlisted:,} of them are counted and not listed."
        return " ".join([said, *(f"Not looked at: {text}." for text in self.not_looked_at)])

    def rows(self) -> list[tuple[str, str, str]]:
        """The table's cells: where, fault, reason."""
        return [(fault.where, fault.kind.value, fault.reason) for fault in self.faults]

    def to_json(self) -> str:
        """The findings as JSON text, readable by `from_json`."""
        faults = [dataclasses.asdict(fault) | {"kind": fault.kind.value} for fault in self.faults]
        fields = dataclasses.asdict(dataclasses.replace(self, faults=()))
        return to_text(SCHEMA, {"ok": self.ok} | fields | {"faults": faults})

    @classmethod
    def from_json(cls, text: str) -> "Findings":
        """Reads `to_json`'s text.

        Raises:
            ValueError: the text is not a report by `to_json`.
        """
        with parsed(text, SCHEMA, "a report of tfaccel.data") as data:
            del data["ok"]
            faults = tuple(
                Fault(**fault | {"kind": FaultKind(fault["kind"])}) for fault in data["faults"]
            )
            unknown = tuple(data["not_looked_at"])
            return cls(**data | {"faults": faults, "not_looked_at": unknown})

    def to_markdown(self) -> str:
        """All listed faults as a table, and the summary."""
        table = [markdown_table(_HEADINGS, self.rows()), ""] if self.faults else []
        return "\n".join([*table, self.summary(), ""])

    def __rich__(self) -> rich.console.Group:
        shown: list[rich.console.RenderableType] = []
        if self.faults:
            shown.append(terminal_table(_HEADINGS, self.rows()[:_SHOWN]))
        if len(self.faults) > _SHOWN:
            shown.append(f"  and {len(self.faults) - _SHOWN:,} more: `.faults` has them\n")
        return rich.console.Group(*shown, escape(self.summary()))


def first_line(error: BaseException) -> str:
    """What an error says, without TensorFlow's stack of graph nodes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else type(error).__name__
    return _WAY.sub("", _NODE.sub("", said))[:300]
