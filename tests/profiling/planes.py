"""Traces as TensorFlow's profiler writes them, event by event."""

import importlib
import io

import rich.console

from tfaccel.profiling.traces import _xplane
from tfaccel.profiling.traces.op_trace import OpCost, OpProfile

MILLISECOND = 10**9  # in picoseconds


class Plane:
    """A plane of a trace, written by hand."""

    def __init__(self, space, name):
        self.plane = space.planes.add(name=name)
        self.keys = {}

    def key(self, table, name):
        key = self.keys.setdefault((id(table), name), len(self.keys) + 1)
        table[key].id, table[key].name = key, name
        return key

    def line(self, name, *events):
        """Events: name, start and duration in milliseconds, and stats."""
        line = self.plane.lines.add(name=name)
        for event, start, duration, *stats in events:
            added = line.events.add(
                metadata_id=self.key(self.plane.event_metadata, event),
                offset_ps=int(start * MILLISECOND),
                duration_ps=int(duration * MILLISECOND),
            )
            for stat, value in (stats[0] if stats else {}).items():
                self.stat(added.stats, stat, value)
        return self

    def stat(self, stats, name, value):
        key = self.key(self.plane.stat_metadata, name)
        if isinstance(value, bytes):
            stats.add(metadata_id=key, bytes_value=value)
        elif isinstance(value, int):
            stats.add(metadata_id=key, int64_value=value)
        elif value.startswith("ref:"):
            reference = self.key(self.plane.stat_metadata, value.removeprefix("ref:"))
            stats.add(metadata_id=key, ref_value=reference)
        else:
            stats.add(metadata_id=key, str_value=value)


def seconds(space):
    """Milliseconds by name and kind."""
    total = {}
    for run in _xplane.work(space):
        key = run.name, run.op_kind
        total[key] = round(total.get(key, 0.0) + run.seconds * 1e3, 9)
    return total


def without(monkeypatch, module):
    """A TensorFlow that lacks a module."""
    real = importlib.import_module

    def import_module(name):
        if name == module:
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", import_module)


PROFILE = OpProfile(
    (
        OpCost("MatMul", "matmul", 30, 0.02),
        OpCost("Mul", "optimizer", 40, 0.006),
        OpCost("Mul", "elementwise", 5, 0.003),
        OpCost("AssignAddVariableOp", "optimizer", 40, 0.001),
    )
)


def text(table):
    console = rich.console.Console(width=100, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()
