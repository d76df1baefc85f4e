"""Reads the traces of TensorFlow's profiler: which operation ran, and for how long."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from tfaccel.compat.tensorflow_private import profiler_protobuf, xla_protobuf
from tfaccel.profiling.traces._op_kinds import (
    CALLS,
    CONVOLUTION,
    INPUT,
    LAYOUT,
    MATMUL,
    OTHER,
    op_kind,
    plain_type,
    xla_kind,
)

# https://openxla.org/xla/operation_semantics
_OPCODE_KINDS = {"convolution": CONVOLUTION, "dot": MATMUL, "copy": LAYOUT, "transpose": LAYOUT}
# The ops that they run have events of their own.
_CONTROL = ("while", "call", "conditional")


class Programs:
    """The programs that a trace describes, on its plane of metadata."""

    def __init__(self, space: Any):
        self._instructions: dict[Any, dict[str, Any]] = {
            key: {instruction.name: instruction for instruction in _of_module(module)}
            for key, module in _modules(space)
        }

    def __bool__(self) -> bool:
        return bool(self._instructions)

    def operation(self, stats: Mapping[str, Any]) -> tuple[str, str] | None:
        """The name and kind of an instruction that ran.

        Args:
            stats: of its event: `hlo_op`, and `program_id` where it is known.

        Returns:
            The type of the TensorFlow op that it was made from (of a fusion, that which
            makes its result) and one of `KINDS`; by the instruction's own name where it was
            made from none. None for control flow.
        """
        instruction = stats["hlo_op"].rpartition("::")[2]
        known = self._instructions.get(stats.get("program_id"), {}).get(instruction)
        plain = re.sub(r"[.\d]+$", "", instruction)
        if (plain if known is None else known.opcode) in _CONTROL:
            return None
        if known is None:
            return plain, xla_kind(instruction)
        op_type = known.metadata.op_type or _last(known.metadata.op_name)
        kind = _OPCODE_KINDS.get(known.opcode)
        if kind is None:
            kind = op_kind(op_type, known.metadata.op_name) if op_type else xla_kind(instruction)
        return op_type or plain, kind


def _modules(space: Any) -> Iterator[tuple[int, Any]]:
    """Each program with its number, as TensorFlow keeps them in a trace."""
    reader = xla_protobuf()
    if reader is None:
        return
    for plane in space.planes:
        if plane.name == "/host:metadata":
            for key, metadata in plane.event_metadata.items():
                for stat in metadata.stats:
                    if stat.bytes_value:
                        yield key, reader.HloProto.FromString(stat.bytes_value).hlo_module


def _of_module(module: Any) -> Iterator[Any]:
    for computation in module.computations:
        yield from computation.instructions


def _last(op_name: str) -> str:
    """The last part of an op's name, which is its type unless someone named it."""
    return re.sub(r"_\d+$", "", op_name.rpartition("/")[2])


_PICOSECOND = 1e-12
# An op's event is named after the node and the op, "model/dense/MatMul:MatMul", and that
# of an op outside of graphs "EagerLocalExecute: MatMul". A function's own name there
# begins with underscores. Others have two colons, or none.
_OP_EVENT = re.compile(r"(?P<name>[\w.][\w.\-/>]*):(?P<type>\w+)")
_EAGER_EVENT = re.compile(r"EagerLocalExecute: (?P<type>[A-Z]\w*)")
# tf.data's are named after the pipeline: "Iterator::Root::Prefetch::Map".
_ITERATOR_EVENT = re.compile(r"(?:.*::)?(?P<last>\w+)(?:\[\d+\])?")
_NEXT_EVENT = "IteratorGetNextOp::DoCompute"  # the step, waiting for a batch
# Iterators that wait for other threads, which is no work in the background.
_WAITING = re.compile(r"Prefetch|Parallel|MapAndBatch")
# XLA's instructions on a CPU begin with an event and end, maybe on another thread, with
# one of this name. The profiler links the two by these stats.
_END = "end: "
_PRODUCER, _CONSUMER = "_p", "_c"
XLA_PROGRAM = "XLA program"
# A call of a compiled program whose instructions have no events of their own (TensorFlow
# before 2.19 or so, on a CPU) shows as the call alone.
_CALL_EVENT = "ExecutorState::ProcessAsync::Start"


class TraceError(RuntimeError):
    """A profiler trace is missing, or can't be read; the message says why."""


@dataclasses.dataclass(frozen=True)
class Work:
    """One run of one operation."""

    name: str  # its type
    op_kind: str  # one of `KINDS`
    seconds: float  # that it took itself, without operations that it ran


@dataclasses.dataclass
class _Event:
    """An operation's event on a thread. `counts`: whether it is work of its own."""

    start: int
    end: int
    name: str
    kind: str
    counts: bool = True
    self_picoseconds: int = 0


def read_space(path: pathlib.Path) -> Any:
    """The XSpace in a file that the profiler wrote.

    Raises:
        TraceError: this TensorFlow has no reader, or the file is damaged.
    """
    space = _protobuf().XSpace
    try:
        return space.FromString(path.read_bytes())
    except Exception as error:  # protobuf's implementations name theirs differently
        raise TraceError(f"{path} is no profiler trace: {error}") from error


def _protobuf() -> Any:
    """The module with TensorFlow's classes for profiler traces, which is not public."""
    try:
        return profiler_protobuf()
    except ImportError as error:
        raise TraceError(
            f"TensorFlow {tf.__version__} has no tensorflow.tsl.profiler.protobuf.xplane_pb2, "
            "which reads profiler traces. TensorBoard's profile plugin shows them too."
        ) from error


def work(space: Any) -> list[Work]:
    """Every run of an operation in a trace.

    On a GPU, the kernels that ran on it (the host's events are the time to launch them)
    and the host's input pipeline; without one, the host's operations.
    """
    programs = Programs(space)
    kernels = [
        kernel
        for plane in space.planes
        if plane.name.startswith("/device:GPU")
        for kernel in _kernels(plane, programs)
    ]
    hosts = [plane for plane in space.planes if plane.name.startswith("/host:CPU")]
    host = [run for plane in hosts for run in _host_work(plane, programs)]
    return kernels + [run for run in host if run.op_kind == INPUT] if kernels else host


def _host_work(plane: Any, programs: Programs) -> Iterator[Work]:
    compiled = list(_instructions(plane, programs))
    yield from compiled
    for line in plane.lines:
        opaque = bool(programs) and not compiled
        yield from _self_times(_events(plane, line, opaque), line.name.startswith("tf_data"))


def _self_times(events: Iterable[_Event], is_input: bool) -> Iterator[Work]:
    """The time of each operation on a thread, less that of operations within it.

    Args:
        events: of one thread, nested or one after the other.
        is_input: whether the thread is tf.data's, so that all of it is input: the ops
            there are the user's own preprocessing.
    """
    running: list[_Event] = []
    finished: list[_Event] = []
    for event in sorted(events, key=lambda e: (e.start, -e.end)):
        while running and running[-1].end <= event.start:
            finished.append(running.pop())
        event.self_picoseconds = event.end - event.start
        if running:
            caller = running[-1]
            caller.self_picoseconds -= min(event.end, caller.end) - event.start
            waited_for = any(outer.name.startswith("IteratorGetNext") for outer in running)
            event.counts |= waited_for and event.kind == INPUT
        if is_input or (running and running[-1].kind == INPUT):
            event.kind = INPUT
        running.append(event)
    for event in finished + running:
        if event.counts:
            yield Work(event.name, event.kind, max(0, event.self_picoseconds) * _PICOSECOND)


def _events(plane: Any, line: Any, opaque: bool) -> Iterator[_Event]:
    """The operations on a thread.

    Args:
        plane: that has the line's names.
        line: the thread.
        opaque: whether calls are the only sign of compiled programs.
    """
    for event in line.events:
        name = plane.event_metadata[event.metadata_id].name.partition("#")[0]
        start, end = event.offset_ps, event.offset_ps + event.duration_ps
        found = operation(name)
        if found is not None:
            yield _Event(start, end, *found, counts=found[0] not in CALLS)
        elif name == _NEXT_EVENT:
            yield _Event(start, end, "IteratorGetNext", INPUT)
        elif name.startswith("Iterator::"):
            last = _ITERATOR_EVENT.fullmatch(name)
            iterator = name if last is None else f"Iterator::{last['last']}"
            yield _Event(start, end, iterator, INPUT, not _WAITING.search(iterator))
        elif opaque and name == _CALL_EVENT and _stats(plane, event).get("kernel_type") in CALLS:
            yield _Event(start, end, XLA_PROGRAM, OTHER)


@functools.lru_cache(maxsize=8192)
def operation(event: str) -> tuple[str, str] | None:
    """The type and the kind of an op, from its event's name."""
    op = _OP_EVENT.fullmatch(event)
    if op is not None:
        return plain_type(op["type"], op["name"]), op_kind(op["type"], op["name"])
    eager = _EAGER_EVENT.fullmatch(event)
    return None if eager is None else (eager["type"], op_kind(eager["type"]))


def _instructions(plane: Any, programs: Programs) -> Iterator[Work]:
    """Instructions of compiled programs on a CPU, each from its beginning to its end.

    They run beside each other on several threads, as ops do.
    """
    if "hlo_op" not in {metadata.name for metadata in plane.stat_metadata.values()}:
        return
    begun: list[tuple[int, int, dict[str, Any]]] = []
    ends: dict[Any, int] = {}
    for line in plane.lines:
        for event in line.events:
            start, end = event.offset_ps, event.offset_ps + event.duration_ps
            stats = _stats(plane, event)
            if plane.event_metadata[event.metadata_id].name.startswith(_END):
                ends[stats.get(_CONSUMER)] = line.timestamp_ns * 1000 + end
            elif "hlo_op" in stats:
                offset = line.timestamp_ns * 1000
                begun.append((offset + start, offset + end, stats))
    for start, end, stats in begun:
        found = programs.operation(stats)
        if found is not None:
            last = max(end, ends.get(stats.get(_PRODUCER), end))
            yield Work(*found, (last - start) * _PICOSECOND)


def _kernels(plane: Any, programs: Programs) -> Iterator[Work]:
    """The kernels of a GPU; each names the op that launched it.

    TensorFlow's collector (cupti_collector.cc) writes a line for each stream, and the op
    as the stat `tf_op` of each event; in a program compiled by XLA, the instruction as
    `hlo_op`. Lines derived from these ("XLA Ops", "Steps") would count twice.
    """
    for line in plane.lines:
        for event in line.events if line.name.startswith("Stream") else ():
            stats = _stats(plane, event)
            found = programs.operation(stats) if stats.get("hlo_op") else None
            found = found or operation(str(stats.get("tf_op", "")).partition("#")[0])
            kernel = plane.event_metadata[event.metadata_id].name
            name, kind = found or (kernel, op_kind(kernel))
            yield Work(name, kind, event.duration_ps * _PICOSECOND)


def _stats(plane: Any, event: Any) -> dict[str, Any]:
    """An event's facts. Text that repeats is kept elsewhere and referred to."""
    found = {}
    for stat in event.stats:
        field = stat.WhichOneof("value")
        value = getattr(stat, field) if field else None
        if field == "ref_value":
            value = plane.stat_metadata[value].name
        found[plane.stat_metadata[stat.metadata_id].name] = value
    return found
