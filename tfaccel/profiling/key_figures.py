"""The key figures of a run in words, for the end of a training and the top of the report."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfaccel.measure.units import ratio, size
from tfaccel.profiling.causes import in_words, remedy
from tfaccel.profiling.growth import FLAT, GROWS
from tfaccel.profiling.outcome import BASELINE, facts, plan_of
from tfaccel.profiling.records import Record, Records, number

# The memories that are watched, by the prefix of their keys.
MEMORIES = {"host": "process", "device": "device"}
# Retraces up to which memory is not said to grow by them: last batches of epochs cause some.
_MANY_RETRACES = 8
_SHOWN_CAUSES = 3
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def plain_number(value: float | None) -> str:
    """A number with four digits, or all digits before the point; nothing for None.

    >>> plain_number(16.123), plain_number(3846.0), plain_number(0.0001)
    ('16.12', '3,846', '0.0001')
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def in_column(value: float | None) -> str:
    """Two decimals, so that the points of a column stand below each other; nothing for None.

    >>> in_column(1229.887), in_column(4)
    ('1,229.89', '4.00')
    """
    return "" if value is None else f"{value:,.2f}"


def share(value: float) -> str:
    """A part of one, in percent.

    >>> share(0.632), share(0.011)
    ('63.2 %', '1.1 %')
    """
    return f"{100 * value:.3g} %"


def duration(seconds: float | None) -> str:
    """A time in ms, s, min or h; nothing for None.

    >>> duration(0.0161), duration(13.0), duration(300), duration(9000)
    ('16.1 ms', '13 s', '5 min', '2.5 h')
    """
    if seconds is None:
        return ""
    for limit, factor, unit in ((1, 1e3, "ms"), (120, 1.0, "s"), (7200, 1 / 60, "min")):
        if abs(seconds) < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds / 3600:.3g} h"


def si(value: float, unit: str) -> str:
    """A large number with a prefix of its unit.

    >>> si(1.2e11, "FLOP/s"), si(950, "FLOP")
    ('120 GFLOP/s', '950 FLOP')
    """
    index = 0
    while abs(value) >= 999.5 and index < len(_PREFIXES) - 1:
        value, index = value / 1000, index + 1
    return f"{value:.3g} {_PREFIXES[index]}{unit}"


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure, in words."""

    label: str  # what it is
    value: str  # the number with its unit; empty where it is unknown
    note: str = ""  # what belongs to it


def key_figures(records: Records) -> list[Figure]:
    """The figures that are known, the most telling ones first."""
    found = facts(records)
    figures = (
        _speedup(found),
        _step(found),
        _throughput(found, records.run),
        _scaling(found),
        _mfu(found),
        _input(found),
        _worker_input(found),
        _memory(found),
        *(_growth(found, key, whose) for key, whose in MEMORIES.items()),
        _first_step(found),
        _retraces(found),
        _tuning(found),
        Figure("Loss scale", plain_number(number(found, "loss_scale")), "of float16"),
        _of(found, "overhead_share", "Cost of profiling", "of the time, comparisons included"),
        _length(found),
    )
    return [figure for figure in figures if figure.value]


def _of(found: Record, key: str, label: str, note: str) -> Figure:
    """The figure of a share."""
    value = number(found, key)
    return Figure(label, "" if value is None else share(value), note)


def _speedup(found: Record) -> Figure:
    value, plan = number(found, "speedup"), plan_of(found)
    if found["input_bound"] is True:
        return Figure("Speedup", "none claimed", "input-bound: a faster step would wait longer")
    if plan == BASELINE:
        return Figure("Speedup", "none", "training ran with the untouched step")
    if value is None:
        return Figure("Speedup", "none claimed", "nothing was compared")
    low, high = number(found, "speedup_low"), number(found, "speedup_high")
    pairs = number(found, "comparisons") or 0
    known = low is not None and high is not None
    interval = f"95 % interval {low:.2f} to {high:.2f}" if known else "too few for an interval"
    note = f"{interval}, {pairs:.0f} comparisons, {plan}"
    return Figure("Speedup of a step", ratio(value), note)


def _step(found: Record) -> Figure:
    median, p95 = number(found, "step_ms"), number(found, "step_ms_p95")
    note = "" if p95 is None else f"95 % of steps within {plain_number(p95)} ms"
    return Figure("Step (median)", "" if median is None else f"{plain_number(median)} ms", note)


def _throughput(found: Record, run: Record) -> Figure:
    batch = number(run, "batch_size")
    note = "" if batch is None else f"in batches of {batch:.0f}"
    return Figure("Samples/s", plain_number(number(found, "samples_per_sec")), note)


def _scaling(found: Record) -> Figure:
    replicas, alone = number(found, "replicas"), number(found, "one_replica_step_ms")
    note = f"of {plain_number(replicas)} times one replica's throughput"
    note += "" if alone is None else f"; alone it takes {plain_number(alone)} ms a step"
    return _of(found, "scaling_efficiency", "Scaling", note)


def _mfu(found: Record) -> Figure:
    flops = number(found, "flops_per_step")
    notes = [f"of {peak_words(found)}"] if peak_words(found) else []
    notes += [] if flops is None else [f"{si(flops, 'FLOP')} a step"]
    return _of(found, "mfu", "Model FLOPs utilisation", "; ".join(notes))


def _input(found: Record) -> Figure:
    pace = "the input sets the pace" if found["input_bound"] is True else "the step sets the pace"
    return _of(found, "input_wait_share", "Waiting for input", pace)


def _worker_input(found: Record) -> Figure:
    shares = found.get("worker_input_wait_shares")
    known = shares if isinstance(shares, list) else []
    return Figure("Of each worker", ", ".join(map(share, known)), "for its own input, by number")


def _memory(found: Record) -> Figure:
    device, host = number(found, "peak_bytes"), number(found, "host_peak_bytes")
    if device is not None:
        note = "on the device" + ("" if host is None else f"; process {size(host)}")
        return Figure("Peak memory", size(device), note)
    return Figure("Peak memory", "" if host is None else size(host), "of the process")


def growth_words(record: Mapping[str, Any], key: str) -> str:
    """How fast a memory grows, by the epoch where that is known.

    >>> growth_words({"host_growth_bytes_per_epoch": 3 * 2**20}, "host")
    '3.00 MiB an epoch'
    """
    for unit in ("epoch", "step"):
        value = number(record, f"{key}_growth_bytes_per_{unit}")
        if value is not None:
            return f"{size(value)} {'an' if unit == 'epoch' else 'a'} {unit}"
    return ""


def _growth(found: Record, key: str, whose: str) -> Figure:
    """The verdict on a memory; none where there were too few steps for one."""
    verdict, label = found.get(f"{key}_memory"), f"Memory of the {whose}"
    if verdict == FLAT:
        return Figure(label, FLAT, "it did not grow after the warm-up")
    if verdict != GROWS:
        return Figure(label, "")
    retraces = number(found, "retraces") or 0
    if retraces >= _MANY_RETRACES:
        what = "each retrace keeps a graph: see Retraces"
    else:
        what = (
            "something is kept at each step: in lists and callbacks keep numbers (float(loss)), "
            "no tensors, and make no variables, models or datasets there"
        )
    return Figure(label, f"grows by {growth_words(found, key)}", f"what to do: {what}")


def _retraces(found: Record) -> Figure:
    """How often the step was traced anew for another batch, and why."""
    many = number(found, "retraces")
    listed = found.get("retrace_causes")
    causes = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    said = [f"{in_words(item)} (x{plain_number(number(item, 'times'))})" for item in causes]
    note = "; ".join(said[:_SHOWN_CAUSES])
    note += f". What to do: {remedy(causes)}" if many and remedy(causes) else ""
    return Figure("Retraces", plain_number(many) if many else "", note)


def _first_step(found: Record) -> Figure:
    compiling, traces = number(found, "compile_seconds"), number(found, "traces")
    notes = [] if compiling is None else [f"tracing and compiling took {duration(compiling)}"]
    notes += [] if traces is None else [f"{traces:.0f} trace{'s' * (traces != 1)}"]
    return Figure("First step", duration(number(found, "first_step_seconds")), ", ".join(notes))


def _tuning(found: Record) -> Figure:
    seconds, even = number(found, "tuning_seconds"), number(found, "break_even_steps")
    steps = number(found, "steps")
    had = "" if steps is None else f"; the run had {plain_number(steps)}"
    paid = f"paid back after {plain_number(even)} steps{had}"
    note = "not paid back in this run" if even is None else paid
    return Figure("Tuning", duration(seconds or None), note)


def _length(found: Record) -> Figure:
    seconds = number(found, "seconds")
    note = "" if seconds is None else f"in {duration(seconds)}"
    return Figure("Steps", plain_number(number(found, "steps")), note)


def peak_words(found: Record) -> str:
    """The device's peak and where it is from; empty where it is unknown."""
    peak, source = number(found, "peak_flops_per_second"), found.get("peak_source")
    if peak is None:
        return ""
    return si(peak, "FLOP/s") + (f" ({source})" if source else "")
