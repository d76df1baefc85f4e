"""profile.jsonl: how it is written from within a training, and read back.

One JSON object a line; `"kind"` says which of `KINDS` it is, and docs/report.md has the keys
of each. An unknown fact is null, or its key is missing. Several runs may follow each
other in one file; each begins with a `run` record.
"""

import dataclasses
import io
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tfaccel.system import notices

SCHEMA = 1
FILE_NAME = "profile.jsonl"
# The kinds of which a run has many, and where `Records` keeps them.
_LISTS = {
    "trace": "traces",
    "tuning": "tuning",
    "comparison": "comparisons",
    "interval": "intervals",
    "ops": "ops",
}
KINDS = ("run", *_LISTS, "summary")

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of one run, in the order of the file."""

    run: Record  # the run record
    # intervals, comparisons, traces, tuning, ops: the records of these kinds.
    intervals: list[Record] = dataclasses.field(default_factory=list)
    comparisons: list[Record] = dataclasses.field(default_factory=list)
    traces: list[Record] = dataclasses.field(default_factory=list)
    tuning: list[Record] = dataclasses.field(default_factory=list)
    ops: list[Record] = dataclasses.field(default_factory=list)
    # The last summary; empty where the run did not get so far.
    summary: Record = dataclasses.field(default_factory=dict)
    earlier: tuple["Records", ...] = ()  # the runs before this one in the same file, oldest first
    skipped: int = 0  # lines of the file that were no whole, known record of a run

    def _add(self, record: Record) -> None:
        if record["kind"] == "summary":
            self.summary.clear()
            self.summary.update(record)
        else:
            getattr(self, _LISTS[record["kind"]]).append(record)


def read_records(path: str | os.PathLike[str]) -> Records:
    """Reads a file that `JsonLines` wrote, up to its last whole line.

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
            if record is None or (not runs and record["kind"] != "run"):
                skipped += 1
            elif record["kind"] == "run":
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
    """A record for each line that is not empty; None for other text and unknown kinds."""
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


class JsonLines:
    """Appends records to a file, one a line, and never stops a training.

    A line goes to the system in one piece, so a process that is killed leaves at most its
    last line unfinished. A line that an earlier process or a full disk left unfinished is
    ended before the next one. The file is opened, and its folder
    made, by the first `write`.

    Args:
        path: the file; records are added to one that is there.
        warn: called once with a message, a category and a `stacklevel`, if the file can't
            be written. Later records are tried in silence, and dropped where they fail.

    Example:

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "run" / "profile.jsonl"
    >>> lines = JsonLines(path)
    >>> lines.write({"kind": "run", "schema": 1, "batch_size": np.int64(32)})
    True
    >>> lines.close()
    >>> tfaccel.profiling.records.read_records(path).run["batch_size"]
    32
    """

    def __init__(
        self, path: str | os.PathLike[str], warn: Callable[..., object] = notices.warn
    ) -> None:
        self.path = pathlib.Path(path)
        self._warn = warn
        self._file: io.FileIO | None = None
        self._warned = False
        self._unfinished = False

    def write(self, record: Mapping[str, Any]) -> bool:
        """Appends one record; returns whether it is in the file.

        Args:
            record: its `"kind"` and its keys (see docs/report.md).
                Scalars and arrays of NumPy and TensorFlow become numbers and lists; NaN and
                infinity, which JSON lacks, become null.
        """
        line = json.dumps(plain(record)).encode("ascii") + b"\n"
        try:
            self._append(line)
            return True
        except (OSError, ValueError) as error:  # ValueError: a path that no system takes
            if not self._warned:
                self._warned = True
                self._warn(
                    f"tfaccel can't write {self.path}: {error}. Training goes on; records "
                    "that can't be written are dropped.",
                    RuntimeWarning,
                    stacklevel=3,
                )
            return False

    def close(self) -> None:
        """Closes the file; a later `write` opens it again."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:  # some network file systems tell of a full disk only now
                self._unfinished = True

    def _append(self, line: bytes) -> None:
        file = self._opened()
        left = memoryview(b"\n" + line if self._unfinished else line)
        while left:
            # A disk that fills up takes a part of the line first and fails afterwards.
            written = file.write(left) or 0
            self._unfinished = self._unfinished or written > 0
            left = left[written:]
        self._unfinished = False

    def _opened(self) -> io.FileIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = open(self.path, "ab+", buffering=0)  # noqa: SIM115 (closed by `close`)
            self._unfinished = self._unfinished or not _ends_a_line(file)
            self._file = file
        return self._file


def _ends_a_line(file: io.FileIO) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def plain(value: Any) -> Any:
    """A value as JSON can hold it.

    It goes through mappings, lists and tuples; numbers that are not finite become None;
    values of unknown types become their `str`.

    >>> plain({"loss": np.float32(0.5), "scale": tf.constant(2), "mfu": float("nan")})
    {'loss': 0.5, 'scale': 2, 'mfu': None}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, bytes):  # what TensorFlow has for text
        return value.decode("utf-8", "replace")
    try:
        if hasattr(value, "numpy"):
            return plain(value.numpy())
        if hasattr(value, "tolist"):
            return plain(value.tolist())
    except Exception:  # a symbolic tensor, or an object of any other library
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
