"""Reading a profile.jsonl."""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

from tfaccel.profiling.records.kinds import (
    COMPARISON,
    FILE_NAME,
    INTERVAL,
    KINDS,
    OPS,
    RUN,
    SCHEMA,
    SUMMARY,
    TRACE,
    TUNING,
)

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of one run, in the order of the file.

    Attributes:
        run: the run record.
        intervals, comparisons, traces, tuning, ops: the records of these kinds.
        summary: the last summary; empty where the run did not get so far.
        earlier: the runs before this one in the same file, oldest first.
        skipped: lines of the file that were no whole, known record of a run.
    """

    run: Record
    intervals: list[Record] = dataclasses.field(default_factory=list)
    comparisons: list[Record] = dataclasses.field(default_factory=list)
    traces: list[Record] = dataclasses.field(default_factory=list)
    tuning: list[Record] = dataclasses.field(default_factory=list)
    ops: list[Record] = dataclasses.field(default_factory=list)
    summary: Record = dataclasses.field(default_factory=dict)
    earlier: tuple["Records", ...] = ()
    skipped: int = 0

    def _add(self, record: Record) -> None:
        lists = {
            INTERVAL: self.intervals,
            COMPARISON: self.comparisons,
            TRACE: self.traces,
            TUNING: self.tuning,
            OPS: self.ops,
        }
        if record["kind"] == SUMMARY:
            self.summary.clear()
            self.summary.update(record)
        else:
            lists[record["kind"]].append(record)


def read_records(path: str | os.PathLike[str]) -> Records:
    """Reads a file that `JsonLines` wrote, up to its last whole line.

    Args:
        path: the file.

    Returns:
        The last run in it; `earlier` has the others.

    Raises:
        OSError: the file can't be read.
        ValueError: there is no run in it, or it is of a newer schema.
    """
    runs: list[Records] = []
    skipped = 0
    with open(path, "rb") as file:
        for record in _parsed(file):
            if record is None or (not runs and record["kind"] != RUN):
                skipped += 1
            elif record["kind"] == RUN:
                runs.append(Records(record))
            else:
                runs[-1]._add(record)
    if not runs:
        raise ValueError(
            f"{os.fspath(path)} holds no run: it must be a {FILE_NAME}, made by "
            "tfaccel.ProfilerCallback(log_dir=...)."
        )
    schema = runs[-1].run.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise ValueError(
            f"{os.fspath(path)} must be of schema {SCHEMA}. Received: {schema!r}; "
            "a newer tfaccel wrote it, and can read it."
        )
    return dataclasses.replace(runs[-1], earlier=tuple(runs[:-1]), skipped=skipped)


def _parsed(lines: Iterable[bytes]) -> Iterable[Record | None]:
    """A record for each line that is not empty; None for what is none, or is not known."""
    for line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            record = None
        kind = record.get("kind") if isinstance(record, dict) else None
        yield record if isinstance(kind, str) and kind in KINDS else None


def number(record: Mapping[str, Any], key: str) -> float | None:
    """A record's number; None where there is none, or something else in its place.

    >>> number({"step_ms": 16}, "step_ms"), number({"step_ms": "soon"}, "step_ms")
    (16.0, None)
    """
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond float64
        return None
