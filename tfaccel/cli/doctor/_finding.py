"""Finding and Diagnosis: what `tfaccel doctor` says."""

import collections
import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import rich.box
import rich.console
import rich.table
import rich.text

from tfaccel.measure.tables import markdown_table
from tfaccel.system.json_files import to_text

SCHEMA = 1


class Level(enum.Enum):
    """How much a finding matters.

    OK needs nothing. A NOTE is worth knowing. A WARNING costs speed or will cause
    trouble. A PROBLEM keeps the hardware or tfaccel from being used, or makes wrong
    numbers; it makes `tfaccel doctor` exit with 1.
    """

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


_STYLES = {
    Level.OK: "green",
    Level.NOTE: "cyan",
    Level.WARNING: "yellow",
    Level.PROBLEM: "bold red",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    area: str  # what it concerns, in a word or two
    found: str  # what is there
    level: Level = Level.OK  # how much it matters
    remedy: str = ""  # what to do about it; empty for OK only

    def __post_init__(self):
        if bool(self.remedy) is (self.level is Level.OK):
            raise ValueError(
                "`remedy` must be given for every level but OK. "
                f"Received: {self.level.value}, {self.remedy!r}"
            )


def warned(area: str, found: str, remedy: str, *, where: bool) -> Finding:
    """A warning where something holds, else a finding that needs nothing."""
    return Finding(area, found, Level.WARNING, remedy) if where else Finding(area, found)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """All findings on a machine, as a table, JSON and Markdown."""

    findings: tuple[Finding, ...]  # in the order in which they were looked at
    machine: Mapping[str, Any]  # the machine's facts, as from `machine_facts`

    @property
    def exit_code(self) -> int:
        """1 if there is a problem, else 0."""
        return int(any(finding.level is Level.PROBLEM for finding in self.findings))

    def summary(self) -> str:
        """How many findings of each level there are, the worst first."""
        counts = collections.Counter(finding.level for finding in self.findings)
        said = [
            f"{counts[level]} {level.value}{'s' if counts[level] > 1 else ''}"
            for level in (Level.PROBLEM, Level.WARNING, Level.NOTE)
            if counts[level]
        ]
        return f"{', '.join(said)}." if said else "Nothing to mend."

    def to_json(self) -> str:
        """An object: `schema`, `summary`, `findings`, `machine`."""
        findings = [dataclasses.asdict(f) | {"level": f.level.value} for f in self.findings]
        found = {"summary": self.summary(), "findings": findings, "machine": dict(self.machine)}
        return to_text(SCHEMA, found)

    def to_markdown(self) -> str:
        """A table and the summary."""
        rows = [(f.area, f.level.value, f.found, f.remedy) for f in self.findings]
        table = markdown_table(("area", "level", "found", "what to do"), rows)
        return "\n".join([table, "", self.summary(), ""])

    def __rich__(self) -> rich.console.Group:
        # The remedy stands below what it mends: beside it, both would be too narrow.
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
        table.add_column("area", no_wrap=True)
        table.add_column("level", no_wrap=True)
        table.add_column("found, and what to do", overflow="fold")
        for finding in self.findings:
            style = _STYLES[finding.level]
            said = rich.text.Text(finding.found)
            if finding.remedy:
                said.append(f"\n-> {finding.remedy}", style=style)
            level = rich.text.Text(finding.level.value, style=style)
            table.add_row(rich.text.Text(finding.area), level, said)
        return rich.console.Group(table, rich.text.Text(self.summary()))
