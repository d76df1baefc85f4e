"""The other sections: where the time goes, the trials, the traces, the machine."""

from typing import Any

from tfaccel.autotune.report import HEADINGS
from tfaccel.measure.units import size
from tfaccel.profiling.causes import in_words, remedy, retraces_in
from tfaccel.profiling.html.over_steps import MAX_ROWS, Table
from tfaccel.profiling.html.plots import Bar, bar_chart
from tfaccel.profiling.html.svg import Chart
from tfaccel.profiling.key_figures import duration, in_column, peak_words, plain_number, share
from tfaccel.profiling.outcome import BASELINE, facts, part, tuning_report
from tfaccel.profiling.records import Record, Records, number
from tfaccel.profiling.traces.op_trace import KINDS

TOP_OPS = 10


def listed(record: Record, key: str) -> list[Any]:
    """A list within a record; an empty one where there is none."""
    value = record.get(key)
    return value if isinstance(value, list) else []


def time(records: Records) -> dict[str, Any] | None:
    """The ops of a step, before and after, as the TensorFlow profiler saw them.

    Returns:
        `plot`, `kinds` (a table) and `ops` (a table for each plan); None without a trace.
    """
    traced = _by_plan(records.ops)
    if not traced:
        return None
    bars = [
        Bar(f"{plan}: {in_column(sum(ms.values()))} ms", ms) for plan, (_, ms) in traced.items()
    ]
    said = "; ".join(f"{plan}: {_largest(ms)}" for plan, (_, ms) in traced.items())
    chart = Chart("kinds", "Time of a step by kind of op", said, "ms of ops a step")
    kinds = [kind for kind in KINDS if any(ms.get(kind) for _, ms in traced.values())]
    rows = [(kind, *(in_column(ms.get(kind, 0.0)) for _, ms in traced.values())) for kind in kinds]
    totals = ("all", *(in_column(sum(ms.values())) for _, ms in traced.values()))
    caption, headings = "Time by kind of op, ms a step", ("kind", *traced)
    return {
        "plot": bar_chart(chart, bars, KINDS),
        "kinds": Table(caption, headings, [*rows, totals], numbers=list(traced)),
        "ops": [_top_ops(plan, record) for plan, (record, _) in traced.items()],
    }


def _by_plan(ops: list[Record]) -> dict[str, tuple[Record, dict[str, float]]]:
    """Each plan's last trace, and its ms a step by kind; the baseline first."""
    found = {}
    for record in ops:
        milliseconds = _milliseconds(record)
        if milliseconds:
            found[str(record.get("plan") or BASELINE)] = record, milliseconds
    return dict(sorted(found.items(), key=lambda item: item[0] != BASELINE))


def _milliseconds(record: Record) -> dict[str, float]:
    steps = number(record, "steps") or 1.0
    seconds = part(record, "kinds")
    found: dict[str, float] = {}
    for name in seconds:
        kind = name if name in KINDS else "other"
        value = max(0.0, number(seconds, name) or 0.0)
        found[kind] = found.get(kind, 0.0) + value * 1e3 / steps
    return {kind: value for kind, value in found.items() if value}


def _largest(milliseconds: dict[str, float]) -> str:
    total = sum(milliseconds.values())
    largest = sorted(milliseconds.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{kind} {share(value / total)}" for kind, value in largest)


def _top_ops(plan: str, record: Record) -> Table:
    ops = [op for op in listed(record, "ops") if isinstance(op, dict)]
    ops.sort(key=lambda op: -(number(op, "seconds") or 0.0))
    steps = number(record, "steps") or 1.0
    rows = [
        (
            str(op.get("name") or ""),
            in_column((number(op, "seconds") or 0.0) * 1e3 / steps),
            plain_number((number(op, "count") or 0.0) / steps),
            str(op.get("op_kind") or ""),
        )
        for op in ops[:TOP_OPS]
    ]
    headings = ("op", "ms a step", "times a step", "kind")
    return Table(f"Ops that cost most, {plan}", headings, rows, numbers=headings[1:3])


def trials(records: Records) -> list[dict[str, Any]]:
    """The trials, with their results and reasons.

    Returns:
        For each tuning `table` (None where it can't be read), `reasons`, and a sentence `said`.
    """
    bound = facts(records)["input_bound"] is True
    return [_trials(record, with_gain=not bound) for record in records.tuning]


def _trials(record: Record, with_gain: bool) -> dict[str, Any]:
    step = number(record, "step")
    after = "Trials" if step is None else f"Trials after {plain_number(step)} steps"
    try:
        report = tuning_report(record)
    except ValueError as error:
        return {"table": None, "reasons": [], "said": f"{after} can't be shown here: {error}"}
    headings = HEADINGS
    chosen = [index for index, trial in enumerate(report.tried()) if trial.plan == report.plan]
    table = Table(after, headings, report.rows(), headings[1:-1], chosen[0] if chosen else None)
    said = report.summary() if with_gain else report.note
    return {"table": table, "reasons": report.reasons(), "said": said}


def traces(records: Records) -> dict[str, Any] | None:
    """Each trace of the step: when, how long, for which shapes.

    Returns:
        `table`, how many `kinds` of batches came, and a `remedy` for retraces (empty where there
        were none); None without a trace.
    """
    if not records.traces:
        return None
    rows = [
        (
            str(record.get("plan") or ""),
            _shapes(record),
            plain_number(number(record, "step")),
            duration(number(record, "seconds")),
            in_words(record),
        )
        for record in records.traces
    ]
    first = f" (the first {MAX_ROWS} of {len(rows)})" if len(rows) > MAX_ROWS else ""
    headings = ("plan", "shapes", "before step", "took", "because of")
    table = Table(f"Traces of the step{first}", headings, rows[:MAX_ROWS], headings[2:4])
    return {
        "table": table,
        "kinds": len({_shapes(record) for record in records.traces}),
        "remedy": remedy(retraces_in(records.traces).to_list()),
    }


def _shapes(record: Record) -> str:
    return ", ".join(map(str, listed(record, "shapes")))


def machine(records: Records) -> Table:
    """The machine of the run, as far as it is known."""
    found = part(records.run, "machine")
    words = {key: str(value or "") for key, value in found.items()}
    rows = [
        ("CPU", words.get("cpu", "")),
        ("cores", plain_number(number(found, "cores"))),
        ("instruction sets", ", ".join(map(str, listed(found, "isa")))),
        ("memory", _bytes(found)),
        *(("GPU", _gpu(gpu)) for gpu in listed(found, "gpus")),
        ("system", words.get("system", "")),
        *((name, words.get(name.lower(), "")) for name in ("Python", "TensorFlow", "Keras")),
        ("NumPy", words.get("numpy", "")),
        ("peak", peak_words(facts(records))),
    ]
    return Table("What the run ran on", (), [row for row in rows if row[1]])


def _bytes(record: Record) -> str:
    value = number(record, "memory_bytes")
    return "" if value is None else size(value)


def _gpu(gpu: object) -> str:
    if not isinstance(gpu, dict):
        return str(gpu)
    capability = ".".join(map(str, listed(gpu, "compute_capability")))
    said = [str(gpu.get("name") or "unknown"), _bytes(gpu)]
    return ", ".join(filter(None, [*said, capability and f"compute capability {capability}"]))
