"""What changed over the steps of a run: step time, throughput, speedup."""

import dataclasses
import statistics
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import TypeVar

from tfaccel.measure.racing import LOOKS
from tfaccel.measure.timing import median_interval
from tfaccel.measure.units import ratio
from tfaccel.profiling.html.outcome import facts
from tfaccel.profiling.html.plots import Chart, Line, line_chart
from tfaccel.profiling.html.tags import beside, section, table, tag
from tfaccel.profiling.html.words import in_column, plain_number
from tfaccel.profiling.records import Record, Records, number

# More points than a screen can show, and more rows than anyone reads, are thinned.
MAX_POINTS, MAX_ROWS, MAX_INTERVALS = 400, 40, 40
PLAN = "plan"
T = TypeVar("T")


def thinned(items: Sequence[T], most: int) -> list[T]:
    """At most so many items, evenly spaced, the first and the last among them.

    >>> thinned(range(100), 4)
    [0, 33, 66, 99]
    """
    if len(items) <= most:
        return list(items)
    return [items[index * (len(items) - 1) // (most - 1)] for index in range(most)]


def _points(intervals: list[Record], key: str) -> tuple[list[float], list[float]]:
    pairs = [(number(record, "step"), number(record, key)) for record in intervals]
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    return [x for x, _ in known], [y for _, y in known]


def _cell(record: Record, key: str) -> str:
    value = number(record, key)
    if value is None:
        return ""
    return plain_number(value) if key == "step" else in_column(value)


def _waiting(record: Record) -> str:
    value = number(record, "time/input_wait_share")
    return "" if value is None else f"{in_column(100 * value)} %"


def _marks(records: Records) -> dict[str, list[float]]:
    steps = [number(record, "step") for record in records.tuning]
    return {"trials": [step for step in steps if step is not None]}


def _range(values: Sequence[float], unit: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    words = [plain_number(value) for value in (low, middle, high)]
    return f"from {words[0]} to {words[2]} {unit}, {words[1]} {unit} in the middle"


def _numbers(caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> ET.Element:
    """The table to a plot; where the second column, the plan, never changes the caption has it."""
    shown = thinned(rows, MAX_ROWS)
    plans = {row[1] for row in rows} if headings[1] == PLAN else set()
    if len(plans) == 1:
        caption += f", {plan}" if (plan := plans.pop()) else ""
        headings = [headings[0], *headings[2:]]
        shown = [[row[0], *row[2:]] for row in shown]
    if len(shown) < len(rows):
        caption += f" ({len(shown)} of {len(rows)}, evenly spaced)"
    return table(caption, headings, shown, numbers=[name for name in headings if name != PLAN])


def step_time_section(records: Records) -> ET.Element | None:
    """Median and 95th percentile of the step, an interval a point."""
    shown = thinned(records.intervals, MAX_POINTS)
    x, y = _points(shown, "time/step_ms")
    if not x:
        return None
    lines = [Line("median", x, y, 0)]
    slow_x, slow_y = _points(shown, "time/step_ms_p95")
    if slow_x:
        lines.append(Line("95th percentile", slow_x, slow_y, 1, "--"))
    said = f"The median step took {_range(y, 'ms')}."
    chart = Chart("steptime", "Step time over the run", said, "ms")
    rows = [
        (
            _cell(record, "step"),
            str(record.get("plan") or ""),
            _cell(record, "time/step_ms"),
            _cell(record, "time/step_ms_p95"),
            _waiting(record),
        )
        for record in records.intervals
    ]
    headings = ("step", PLAN, "median, ms", "95\N{NO-BREAK SPACE}%, ms", "waiting")
    return section(
        "Step time",
        line_chart(chart, lines, marks=_marks(records)),
        _numbers("Step time of the intervals that end at each step", headings, rows),
    )


def throughput_section(records: Records) -> ET.Element | None:
    """Samples a second, or batches where the batch has no known size."""
    keys = {
        "throughput/samples_per_sec": "samples/s",
        "throughput/batches_per_sec": "batches/s",
    }
    known = {key: unit for key, unit in keys.items() if _points(records.intervals, key)[0]}
    if not known:
        return None
    key, unit = next(iter(known.items()))
    x, y = _points(thinned(records.intervals, MAX_POINTS), key)
    said = f"The throughput was {_range(y, unit)}."
    chart = Chart("throughput", "Throughput over the run", said, unit)
    rows = [
        (_cell(record, "step"), *(_cell(record, key) for key in known))
        for record in records.intervals
    ]
    return section(
        "Throughput",
        line_chart(chart, [Line(unit, x, y, 0)], marks=_marks(records)),
        _numbers(
            "Throughput of the intervals that end at each step", ("step", *known.values()), rows
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Looked:
    """What was known about a plan's speedup at a step."""

    step: float
    pairs: int
    median: float
    low: float
    high: float


def _looks(comparisons: list[Record]) -> dict[str, list[_Looked]]:
    """Each plan's median ratio so far, with its interval."""
    ratios: dict[str, list[tuple[float, float]]] = {}
    for record in comparisons:
        step, before, after = (
            number(record, key) for key in ("step", "baseline_seconds", "plan_seconds")
        )
        if step is not None and before is not None and after is not None and min(before, after) > 0:
            ratios.setdefault(str(record.get("plan") or ""), []).append((step, before / after))
    looked = {}
    for plan, pairs in ratios.items():
        counts = thinned(range(1, len(pairs) + 1), MAX_INTERVALS)
        looked[plan] = [
            _Looked(pairs[n - 1][0], n, *median_interval([value for _, value in pairs[:n]]))
            for n in counts
        ]
    return looked


def _speedup_lines(looked: dict[str, list[_Looked]]) -> list[Line]:
    lines = []
    for paint, (plan, looks) in enumerate(looked.items()):
        # Fewer pairs have no interval that covers the median 95 times of 100.
        looks = [look for look in looks if look.pairs >= LOOKS[0]] or looks
        covered = looks[-1].pairs >= LOOKS[0]
        band = ([look.low for look in looks], [look.high for look in looks]) if covered else None
        x, y = [look.step for look in looks], [look.median for look in looks]
        lines.append(Line(plan, x, y, paint % 8, band=band))
    return lines


def speedup_section(records: Records) -> ET.Element:
    """How the speedup came to be known, comparison by comparison."""
    title = "Speedup, measured while training"
    if facts(records)["input_bound"] is True:
        return section(
            title,
            tag("p", "None is claimed: the run waited for its input, whatever a step took."),
        )
    looked = _looks(records.comparisons)
    if not looked:
        return section(title, tag("p", *_HOW_TO_COMPARE))
    rows = [
        (
            plain_number(look.step),
            plan,
            str(look.pairs),
            ratio(look.median),
            *((ratio(look.low), ratio(look.high)) if look.pairs >= LOOKS[0] else ("", "")),
        )
        for plan, looks in looked.items()
        for look in looks
    ]
    last = [f"{plan}: {ratio(looks[-1].median)}" for plan, looks in looked.items()]
    said = f"The median of all pairs so far; at the end {', '.join(last)}. 1 is no difference."
    chart = Chart("speedup", "Speedup over the run", said, "times as fast")
    return section(
        title,
        tag(
            "p",
            "Now and then an untouched step was run beside a step of the plan. The line is the "
            "median ratio of all pairs so far, the band its 95 % interval.",
        ),
        beside(
            line_chart(chart, _speedup_lines(looked), level=1.0),
            _numbers(
                "Median ratio of the pairs so far, with its 95 % interval (from 6 pairs on)",
                ("step", PLAN, "pairs", "median", "low", "high"),
                rows,
            ),
        ),
    )


_HOW_TO_COMPARE = (
    "Nothing was compared. A run with AccelCallback beside ProfilerCallback(compare_every=",
    tag("code", '"auto"'),
    ") compares steps of its plan with untouched ones.",
)
