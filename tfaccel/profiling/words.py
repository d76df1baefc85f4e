"""A run in a sentence, and each of its epochs."""

from collections.abc import Mapping
from typing import Any

from tfaccel.measure.units import number as in_words
from tfaccel.measure.units import ratio
from tfaccel.profiling.growth import GROWS
from tfaccel.profiling.key_figures import MEMORIES, growth_words, share
from tfaccel.profiling.outcome import BASELINE, facts, last_report, plan_of
from tfaccel.profiling.records import Record, Records, number


def sentence(record: Mapping[str, Any]) -> str:
    """An `interval` record in a line, to be read beside Keras's progress bar."""
    if record["time/step_ms"] is None:
        return f"tfaccel: epoch {record['epoch'] + 1}: no step without tracing or tuning"
    usual, most = in_words(record["time/step_ms"]), in_words(record["time/step_ms_p95"])
    parts = [f"{usual} ms a step (95 % within {most})"]
    if record["throughput/samples_per_sec"] is not None:
        parts.append(f"{record['throughput/samples_per_sec']:,.0f} samples/s")
    if record["time/input_wait_share"] is not None:
        bound = "input-bound, " if record["input_bound"] else ""
        parts.append(f"{bound}{record['time/input_wait_share']:.0%} of it waiting for input")
    if record["accel/speedup"] is not None:
        parts.append(f"{speedup_words(record, 'accel/')} the speed of your own step")
    parts += [
        f"memory of the {whose} grows by {growth_words(record, 'memory/' + key)}"
        for key, whose in MEMORIES.items()
        if record[f"{key}_memory"] == GROWS
    ]
    return f"tfaccel: epoch {record['epoch'] + 1}: " + ", ".join(parts)


def speedup_words(record: Mapping[str, Any], prefix: str = "") -> str:
    """The speedup with its interval, such as `1.36x [1.31-1.66]`."""
    keys = (f"{prefix}speedup{end}" for end in ("", "_low", "_high"))
    middle, low, high = (number(record, key) for key in keys)
    said = "" if middle is None else ratio(middle)
    return said if low is None or high is None else f"{said} [{low:.2f}-{high:.2f}]"


def verdict(records: Records) -> str:
    """One sentence on the run, and more on what to do where input sets the pace."""
    advice = str(facts(records).get("worker_input_advice") or "")
    return " ".join(filter(None, (_verdict(records), advice)))


def _verdict(records: Records) -> str:
    found = facts(records)
    plan = plan_of(found)
    if found["input_bound"] is True:
        return _input_bound(found)
    if number(found, "speedup") is not None and plan != BASELINE:
        return _compared(found, plan)
    if plan not in ("", BASELINE):
        return (
            f"Training ran with {plan}; it was not compared with the untouched step, so no speedup "
            "is claimed."
        )
    return _untouched(records)


def _untouched(records: Records) -> str:
    report = last_report(records.tuning)
    if report is None or len(report.trials) < 2:
        note = f" {report.note}" if report is not None and report.note else ""
        return f"Training ran with the untouched step; nothing faster was tried.{note}"
    if not report.plan.is_baseline:
        return f"Training ended with the untouched step: {report.plan}, chosen first, was given up."
    return "The untouched step was the fastest of those tried, so training ran with it."


def _input_bound(found: Record) -> str:
    wait = number(found, "input_wait_share")
    waiting = "Most" if wait is None else share(wait)
    return (
        f"Input-bound: {waiting} of the time is spent waiting for input, so no speedup is "
        "claimed. What to do: end the dataset with .prefetch(tf.data.AUTOTUNE), give .map() "
        "num_parallel_calls, and .cache() what is the same in every epoch."
    )


def _compared(found: Record, plan: str) -> str:
    said = speedup_words(found)
    low, high = number(found, "speedup_low"), number(found, "speedup_high")
    if low is None or high is None:
        return (
            f"A step was {said} as fast with {plan} as untouched, in too few comparisons to tell "
            "that from chance."
        )
    if low <= 1.0 <= high:
        return (
            f"A step is {said} as fast with {plan} as untouched: no difference that could be "
            "told from chance."
        )
    if high < 1.0:
        return f"A step is slower with {plan}: {said} as fast as the untouched one."
    return f"A step is {said} as fast with {plan} as untouched."
