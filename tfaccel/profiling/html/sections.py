"""The other sections: where the time goes, the trials, the traces, the machine."""

import xml.etree.ElementTree as ET
from typing import Any

from tfaccel.autotune.report import HEADINGS
from tfaccel.measure.units import size
from tfaccel.profiling.html.figures import peak_words
from tfaccel.profiling.html.outcome import BASELINE, facts, part, plan_of, tuning_report
from tfaccel.profiling.html.over_steps import MAX_ROWS
from tfaccel.profiling.html.plots import Bar, Chart, bar_chart
from tfaccel.profiling.html.tags import beside, section, table, tag
from tfaccel.profiling.html.words import duration, in_column, plain_number, share
from tfaccel.profiling.records import Record, Records, number

OP_KINDS = (
    "convolution",
    "matmul",
    "normalisation",
    "elementwise",
    "optimizer",
    "casts and layout",
    "input",
    "other",
)
TOP_OPS = 10


def time_section(records: Records) -> ET.Element:
    """Where the time of a step goes, before and after, as the TensorFlow profiler saw it."""
    title = "Where the time goes"
    traced = _by_plan(records.ops)
    if not traced:
        code = tag("code", "ProfilerCallback(profile_batch=(10, 14))")
        return section(title, tag("p", "No steps were traced op by op; ", code, " does it."))
    bars = [
        Bar(f"{plan}: {in_column(sum(ms.values()))} ms", ms) for plan, (_, ms) in traced.items()
    ]
    said = "; ".join(f"{plan}: {_largest(ms)}" for plan, (_, ms) in traced.items())
    chart = Chart("kinds", "Time of a step by kind of op", said, "ms of ops a step")
    kinds = [kind for kind in OP_KINDS if any(ms.get(kind) for _, ms in traced.values())]
    rows = [(kind, *(in_column(ms.get(kind, 0.0)) for _, ms in traced.values())) for kind in kinds]
    totals = ("all", *(in_column(sum(ms.values())) for _, ms in traced.values()))
    return section(
        title,
        tag("p", "Ops that run side by side are added up, so this may be more than a step takes."),
        beside(
            bar_chart(chart, bars, OP_KINDS),
            table(
                "Time by kind of op, ms a step",
                ("kind", *traced),
                [*rows, totals],
                numbers=list(traced),
            ),
        ),
        beside(*(_top_ops(plan, record) for plan, (record, _) in traced.items())),
    )


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
        kind = name if name in OP_KINDS else "other"
        value = max(0.0, number(seconds, name) or 0.0)
        found[kind] = found.get(kind, 0.0) + value * 1e3 / steps
    return {kind: value for kind, value in found.items() if value}


def _largest(milliseconds: dict[str, float]) -> str:
    total = sum(milliseconds.values())
    largest = sorted(milliseconds.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{kind} {share(value / total)}" for kind, value in largest)


def _top_ops(plan: str, record: Record) -> ET.Element:
    listed = record.get("ops")
    ops = [op for op in listed if isinstance(op, dict)] if isinstance(listed, list) else []
    timed = [(number(op, "seconds") or 0.0, op) for op in ops]
    timed.sort(key=lambda item: -item[0])
    steps = number(record, "steps") or 1.0
    rows = [
        (
            str(op.get("name") or ""),
            in_column(seconds * 1e3 / steps),
            plain_number((number(op, "count") or 0.0) / steps),
            str(op.get("op_kind") or ""),
        )
        for seconds, op in timed[:TOP_OPS]
    ]
    caption = f"Ops that cost most, {plan}"
    headings = ("op", "ms a step", "times a step", "kind")
    return table(caption, headings, rows, numbers=headings[1:3])


def trials_section(records: Records) -> ET.Element:
    """What was tried, what it gave, why it was chosen or not."""
    title = "What was tried"
    if not records.tuning:
        plan = plan_of(facts(records))
        why = f"The plan was {plan} from the beginning" if plan else "Nothing was tried"
        code = tag("code", "AccelCallback()")
        return section(title, tag("p", f"{why}: no trials. ", code, " tries what may be faster."))
    bound = facts(records)["input_bound"] is True
    note = (
        "Trials run on batches in memory. This run waited for its input, so it gains nothing "
        "from a faster step."
    )
    content = [item for record in records.tuning for item in _trials(record, not bound)]
    return section(title, tag("p", note) if bound else None, *content)


def _trials(record: Record, with_gain: bool) -> list[ET.Element]:
    step = number(record, "step")
    after = "Trials" if step is None else f"Trials after {plain_number(step)} steps"
    try:
        report = tuning_report(record)
    except ValueError as error:
        return [tag("p", f"{after} can't be shown here: {error}")]
    headings = HEADINGS
    chosen = [index for index, trial in enumerate(report.tried()) if trial.plan == report.plan]
    stands_out = chosen[0] if chosen else None
    found = [table(after, headings, report.rows(), numbers=headings[1:-1], chosen=stands_out)]
    if report.reasons():
        found.append(tag("ul", *(tag("li", reason) for reason in report.reasons())))
    said = report.summary() if with_gain else report.note
    return [*found, tag("p", said)] if said else found


def traces_section(records: Records) -> ET.Element | None:
    """Each trace of the step: when, how long, for which shapes."""
    if not records.traces:
        return None
    rows = [
        (
            str(record.get("plan") or ""),
            _shapes(record),
            _words(record, "step"),
            "" if (seconds := number(record, "seconds")) is None else duration(seconds),
        )
        for record in records.traces
    ]
    content = [
        table(
            f"Traces of the step{_first(len(rows))}",
            ("plan", "shapes", "before step", "took"),
            rows[:MAX_ROWS],
            numbers=("before step", "took"),
        )
    ]
    kinds = {_shapes(record) for record in records.traces}
    if len(kinds) > 2:
        said = (
            f"{len(kinds)} kinds of batches came, and each costs a trace. Batches of one shape "
            "(padded_batch, or batch(..., drop_remainder=True)) cost one."
        )
        content.append(tag("p", said))
    return section("Traces and compiling", *content)


def _first(count: int) -> str:
    return f" (the first {MAX_ROWS} of {count})" if count > MAX_ROWS else ""


def _shapes(record: Record) -> str:
    shapes = record.get("shapes")
    return ", ".join(map(str, shapes)) if isinstance(shapes, list) else ""


def _words(record: Record, key: str) -> str:
    value = number(record, key)
    return "" if value is None else plain_number(value)


def machine_section(records: Records) -> ET.Element | None:
    """What the run ran on."""
    machine = part(records.run, "machine")
    rows = [
        ("CPU", str(machine.get("cpu") or "")),
        ("cores", _words(machine, "cores")),
        ("instruction sets", ", ".join(map(str, _listed(machine, "isa")))),
        ("memory", _bytes(machine)),
        *(("GPU", _gpu(gpu)) for gpu in _listed(machine, "gpus")),
        ("system", str(machine.get("system") or "")),
        ("Python", str(machine.get("python") or "")),
        ("TensorFlow", str(machine.get("tensorflow") or "")),
        ("Keras", str(machine.get("keras") or "")),
        ("NumPy", str(machine.get("numpy") or "")),
        ("peak", peak_words(facts(records))),
    ]
    known = [row for row in rows if row[1]]
    return section("Machine", table("What the run ran on", (), known)) if known else None


def _listed(record: Record, key: str) -> list[Any]:
    value = record.get(key)
    return value if isinstance(value, list) else []


def _bytes(record: Record) -> str:
    value = number(record, "memory_bytes")
    return "" if value is None else size(value)


def _gpu(gpu: object) -> str:
    if not isinstance(gpu, dict):
        return str(gpu)
    capability = ".".join(map(str, _listed(gpu, "compute_capability")))
    said = [str(gpu.get("name") or "unknown"), _bytes(gpu)]
    return ", ".join(filter(None, [*said, capability and f"compute capability {capability}"]))
