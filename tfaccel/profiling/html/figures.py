"""The key figures of a run, in words."""

import dataclasses

from tfaccel.measure.units import ratio, size
from tfaccel.profiling.html.outcome import BASELINE, facts, plan_of
from tfaccel.profiling.html.words import duration, plain_number, share, si
from tfaccel.profiling.records import Record, Records, number


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure, in words.

    Attributes:
        label: what it is.
        value: the number with its unit.
        note: what belongs to it.
    """

    label: str
    value: str
    note: str = ""


def key_figures(records: Records) -> list[Figure]:
    """The figures that are known, the most telling ones first."""
    found = facts(records)
    known = (
        _speedup(found),
        _step(found),
        _throughput(found, records.run),
        _mfu(found),
        _input(found),
        _memory(found),
        _first_step(found),
        _tuning(found),
        _overhead(found),
        _length(found),
    )
    return [figure for figure in known if figure is not None]


def _speedup(found: Record) -> Figure | None:
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


def _step(found: Record) -> Figure | None:
    median, p95 = number(found, "step_ms"), number(found, "step_ms_p95")
    if median is None:
        return None
    note = "" if p95 is None else f"95 % of steps within {plain_number(p95)} ms"
    return Figure("Step (median)", f"{plain_number(median)} ms", note)


def _throughput(found: Record, run: Record) -> Figure | None:
    samples, batch = number(found, "samples_per_sec"), number(run, "batch_size")
    note = "" if batch is None else f"in batches of {batch:.0f}"
    return samples if samples is None else Figure("Samples/s", plain_number(samples), note)


def _mfu(found: Record) -> Figure | None:
    mfu, flops = number(found, "mfu"), number(found, "flops_per_step")
    notes = [f"of {peak_words(found)}"] if peak_words(found) else []
    notes += [] if flops is None else [f"{si(flops, 'FLOP')} a step"]
    return mfu if mfu is None else Figure("Model FLOPs utilisation", share(mfu), "; ".join(notes))


def _input(found: Record) -> Figure | None:
    wait = number(found, "input_wait_share")
    pace = "the input sets the pace" if found["input_bound"] is True else "the step sets the pace"
    return wait if wait is None else Figure("Waiting for input", share(wait), pace)


def _memory(found: Record) -> Figure | None:
    device, host = number(found, "peak_bytes"), number(found, "host_peak_bytes")
    if device is not None:
        note = "on the device" + ("" if host is None else f"; process {size(host)}")
        return Figure("Peak memory", size(device), note)
    return host if host is None else Figure("Peak memory", size(host), "of the process")


def _first_step(found: Record) -> Figure | None:
    first, compiling = number(found, "first_step_seconds"), number(found, "compile_seconds")
    if first is None:
        return None
    traces = number(found, "traces")
    notes = [] if compiling is None else [f"tracing and compiling took {duration(compiling)}"]
    notes += [] if traces is None else [f"{traces:.0f} traces"]
    return Figure("First step", duration(first), ", ".join(notes))


def _tuning(found: Record) -> Figure | None:
    seconds, even = number(found, "tuning_seconds"), number(found, "break_even_steps")
    if not seconds:
        return None
    if even is None:
        return Figure("Tuning", duration(seconds), "not paid back in this run")
    steps = number(found, "steps")
    had = "" if steps is None else f"; the run had {plain_number(steps)}"
    return Figure("Tuning", duration(seconds), f"paid back after {plain_number(even)} steps{had}")


def _overhead(found: Record) -> Figure | None:
    value = number(found, "overhead_share")
    note = "of the time, comparisons included"
    return value if value is None else Figure("Cost of profiling", share(value), note)


def _length(found: Record) -> Figure | None:
    steps, seconds = number(found, "steps"), number(found, "seconds")
    note = "" if seconds is None else f"in {duration(seconds)}"
    return steps if steps is None else Figure("Steps", plain_number(steps), note)


def peak_words(found: Record) -> str:
    """The device's peak and where it is from; empty where it is unknown."""
    peak, source = number(found, "peak_flops_per_second"), found.get("peak_source")
    if peak is None:
        return ""
    return si(peak, "FLOP/s") + (f" ({source})" if source else "")
