"""The results of a run, as numbers."""

import json

from tfaccel.autotune.report import Report
from tfaccel.measure.racing import LOOKS
from tfaccel.profiling.causes import retraces_in
from tfaccel.profiling.records import Record, Records, number

BASELINE = "baseline"

# Keys of a summary whose names differ in an interval.
IN_INTERVALS = {
    "steps": "step",
    "step_ms": "time/step_ms",
    "step_ms_p95": "time/step_ms_p95",
    "batches_per_sec": "throughput/batches_per_sec",
    "samples_per_sec": "throughput/samples_per_sec",
    "input_wait_share": "time/input_wait_share",
    "input_bound": "input_bound",
    "mfu": "throughput/device/mfu",
    "speedup": "accel/speedup",
    "speedup_low": "accel/speedup_low",
    "speedup_high": "accel/speedup_high",
    "peak_bytes": "memory/peak_bytes",
    "host_peak_bytes": "memory/host_peak_bytes",
    "host_bytes": "memory/host_bytes",
    "host_growth_bytes_per_step": "memory/host_growth_bytes_per_step",
    "host_growth_bytes_per_epoch": "memory/host_growth_bytes_per_epoch",
    "host_memory": "host_memory",
    "device_bytes": "memory/device_bytes",
    "device_growth_bytes_per_step": "memory/device_growth_bytes_per_step",
    "device_growth_bytes_per_epoch": "memory/device_growth_bytes_per_epoch",
    "device_memory": "device_memory",
    "loss_scale": "accel/loss_scale",
    "traces": "accel/traces",
    "retraces": "accel/retraces",
    "plan": "plan",
}


def part(record: Record, key: str) -> Record:
    """An object within a record; an empty one where there is none."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def facts(records: Records) -> Record:
    """The results of a run, with a summary's keys.

    They are the summary's, and those of the other records where the run was stopped before
    it wrote one. A speedup is left out where the run was input-bound, and its
    interval where too few pairs were compared to have one.
    """
    last = records.intervals[-1] if records.intervals else {}
    found: Record = {name: last.get(key) for name, key in IN_INTERVALS.items()}
    found["seconds"] = _total(records.intervals, "seconds")
    found["first_step_seconds"] = next(
        (number(trace, "seconds") for trace in records.traces if trace.get("step") == 0), None
    )
    found["comparisons"] = len(records.comparisons)
    found["retrace_causes"] = retraces_in(records.traces).to_list()
    found |= _tuning_facts(records.tuning) | records.summary
    found.pop("kind", None)
    if found["input_bound"] is True:
        found |= {"speedup": None, "speedup_low": None, "speedup_high": None}
        found["break_even_steps"] = None
    if (number(found, "comparisons") or 0) < LOOKS[0]:  # so few have no 95 % interval
        found |= {"speedup_low": None, "speedup_high": None}
    return found


def tuning_report(record: Record) -> Report:
    """The report within a tuning record.

    Raises:
        ValueError: the record holds no report, or one with a pass that is not known here.
    """
    return Report.from_json(json.dumps(record.get("report")))


def last_report(tuning: list[Record]) -> Report | None:
    """The last tuning record's report; None where there is none that can be read."""
    try:
        return tuning_report(tuning[-1]) if tuning else None
    except ValueError:  # the page says so where it shows the trials
        return None


def _tuning_facts(tuning: list[Record]) -> Record:
    report = last_report(tuning)
    even = None if report is None else report.break_even_steps
    return {"tuning_seconds": _total(tuning, "seconds"), "break_even_steps": even}


def _total(records: list[Record], key: str) -> float | None:
    values = [value for record in records if (value := number(record, key)) is not None]
    return sum(values) if values else None


def plan_of(found: Record) -> str:
    """The plan in use at the end, or empty."""
    return str(found.get("plan") or "")
