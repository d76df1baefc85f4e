"""Which operations of a step take the time: a profiler trace, added up."""

import collections
import dataclasses
import os
import pathlib
from typing import Any

import rich.table
import tensorflow as tf

from tfaccel.measure.tables import terminal_table
from tfaccel.measure.units import ratio
from tfaccel.profiling.traces._op_kinds import KINDS as KINDS
from tfaccel.profiling.traces._xplane import XLA_PROGRAM, TraceError, read_space, work
from tfaccel.system import notices


@dataclasses.dataclass(frozen=True)
class OpCost:
    """The time of one type of operation in a trace."""

    # Its type, such as `"Conv2DBackpropFilter"`, whether oneDNN's kernel ran or another; XLA's
    # name for an instruction of a compiled program.
    name: str
    op_kind: str  # one of `KINDS`
    count: int  # how often it ran
    # The seconds of all runs together, without operations within them. On a CPU runs on several
    # threads overlap, so the sum can exceed the time that passed.
    seconds: float


@dataclasses.dataclass(frozen=True)
class OpProfile:
    """The operations of a trace."""

    # The longest first. Types of two kinds (a product in the model and one in the optimizer) are
    ops: tuple[OpCost, ...]

    @property
    def seconds(self) -> float:
        """The seconds of all operations."""
        return sum(op.seconds for op in self.ops)

    @property
    def kinds(self) -> dict[str, float]:
        """Seconds of each kind that occurs, the longest first."""
        total: dict[str, float] = collections.defaultdict(float)
        for op in self.ops:
            total[op.op_kind] += op.seconds
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    @property
    def opaque(self) -> bool:
        """Whether it has programs of XLA's whose operations are unknown."""
        return any(op.name == XLA_PROGRAM for op in self.ops)

    def to_record(self, plan: str, steps: int) -> dict[str, Any]:
        """The record that goes to `profile.jsonl`.

        Returns:
            `kind` ("ops"), `plan`, `steps`, `seconds`, `ops` and `kinds`.
        """
        return {
            "kind": "ops",
            "plan": plan,
            "steps": steps,
            "seconds": self.seconds,
            "ops": [dataclasses.asdict(op) for op in self.ops],
            "kinds": self.kinds,
        }


def read_ops(log_dir: str | os.PathLike[str]) -> list[OpCost]:
    """Adds up the newest trace in a folder.

    Args:
        log_dir: what `tf.profiler.experimental.start` was called with. The trace is in
            `plugins/profile/<time>/<host>.xplane.pb`.

    Returns:
        The operations, the longest first.

    Raises:
        TraceError: there is no trace, or it can't be read.
    """
    runs = [run for run in pathlib.Path(log_dir, "plugins", "profile").glob("*") if run.is_dir()]
    newest = max(runs, key=lambda run: (run.stat().st_mtime_ns, run.name), default=None)
    files = [] if newest is None else sorted(newest.glob("*.xplane.pb"))
    if not files:
        raise TraceError(
            "`log_dir` must hold a profiler trace (plugins/profile/*/*.xplane.pb). "
            f"Received: {os.fspath(log_dir)!r}"
        )
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    seconds: dict[tuple[str, str], float] = collections.defaultdict(float)
    for run in (run for file in files for run in work(read_space(file))):
        counts[run.name, run.op_kind] += 1
        seconds[run.name, run.op_kind] += run.seconds
    costs = (OpCost(*key, count, seconds[key]) for key, count in counts.items())
    return sorted(costs, key=lambda cost: (-cost.seconds, cost.name))


class OpTrace:
    """Traces all that runs between `start` and `stop`.

    If a trace can't be taken (another profiler is running, the folder can't be written), a
    warning says why, and nothing else happens.

    Args:
        log_dir: where the trace goes, in TensorBoard's layout.

    Example:

    >>> import tempfile
    >>> trace = OpTrace(tempfile.mkdtemp())
    >>> trace.start()
    True
    >>> product = tf.linalg.matmul(tf.ones((64, 64)), tf.ones((64, 64)))
    >>> trace.stop().seconds > 0
    True
    """

    def __init__(self, log_dir: str | os.PathLike[str]):
        self._log_dir = pathlib.Path(log_dir)
        self._running = False

    def start(self) -> bool:
        """Begins to trace; returns whether it does."""
        try:
            self._log_dir.mkdir(parents=True, exist_ok=True)
            tf.profiler.experimental.start(str(self._log_dir))
        except Exception as error:
            self._warn(error)
        else:
            self._running = True
        return self._running

    def stop(self) -> OpProfile | None:
        """Ends the trace, writes it and adds it up; None where nothing was traced or written."""
        if not self._running:
            return None
        self._running = False
        try:
            tf.profiler.experimental.stop()
            return OpProfile(tuple(read_ops(self._log_dir)))
        except Exception as error:
            self._warn(error)
            return None

    def _warn(self, error: Exception) -> None:
        cause = str(error).strip() or type(error).__name__
        notices.warn(f"tfaccel takes no trace in {self._log_dir}: {cause}", stacklevel=3)


def ops_table(profile: OpProfile, steps: int, limit: int = 10) -> rich.table.Table:
    """The operations that cost most, as a table for a terminal.

    Returns:
        Columns op, kind, runs and milliseconds a step, share of the whole.
    """
    rows = [
        (
            op.name,
            op.op_kind,
            f"{op.count / steps:.3g}",
            _milliseconds(op.seconds, steps),
            _share(op.seconds, profile.seconds),
        )
        for op in profile.ops[:limit]
    ]
    headings = ("op", "kind", "runs/step", "ms/step", "share")
    return terminal_table(headings, rows, numbers=headings[2:])


def kinds_table(
    before: OpProfile, steps: int, after: OpProfile | None = None, steps_after: int = 0
) -> rich.table.Table:
    """The time by kind of operation; side by side where there are two traces.

    Returns:
        Columns kind, milliseconds a step and share; with `after` kind, milliseconds a step
        before and after, and their ratio. Ratios of single kinds are left out where the
        operations of a compiled program are unknown.
    """
    rows: list[tuple[str, ...]]
    if after is None:
        headings: tuple[str, ...] = ("kind", "ms/step", "share")
        rows = [
            (kind, _milliseconds(seconds, steps), _share(seconds, before.seconds))
            for kind, seconds in before.kinds.items()
        ]
        return terminal_table(headings, rows, numbers=headings[1:])
    headings = ("kind", "ms/step before", "after", "ratio")
    old, new = before.kinds, after.kinds
    blurred = before.opaque or after.opaque
    rows = []
    for kind in sorted(old | new, key=lambda kind: -old.get(kind, 0.0)):
        cells = _compared(kind, old.get(kind, 0.0), steps, new.get(kind, 0.0), steps_after)
        rows.append((*cells[:-1], "") if blurred else cells)
    rows.append(_compared("all", before.seconds, steps, after.seconds, steps_after))
    return terminal_table(headings, rows, numbers=headings[1:], bold=[len(rows) - 1])


def _compared(
    kind: str, old: float, steps: int, new: float, steps_after: int
) -> tuple[str, str, str, str]:
    gain = ratio(old / steps / (new / steps_after)) if old and new else ""
    return kind, _milliseconds(old, steps), _milliseconds(new, steps_after), gain


def _milliseconds(seconds: float, steps: int) -> str:
    return f"{seconds / steps * 1e3:.2f}"


def _share(seconds: float, total: float) -> str:
    return f"{seconds / total:.0%}" if total else ""
