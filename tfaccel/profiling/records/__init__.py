"""profile.jsonl: what is in it, how it is written, how it is read.

One JSON object a line; `"kind"` says which of `KINDS` it is. A fact that nobody
knows is null, or its key is missing. Several runs may follow each other in one
file; each begins with a `run` record.
"""

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
    Key,
)
from tfaccel.profiling.records.read import Record, Records, number, read_records
from tfaccel.profiling.records.write import JsonLines, plain

__all__ = [
    "COMPARISON",
    "FILE_NAME",
    "INTERVAL",
    "KINDS",
    "OPS",
    "RUN",
    "SCHEMA",
    "SUMMARY",
    "TRACE",
    "TUNING",
    "JsonLines",
    "Key",
    "Record",
    "Records",
    "number",
    "plain",
    "read_records",
]
