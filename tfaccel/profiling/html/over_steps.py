"""A run over its steps, as plots with their tables: time, throughput, speedup."""

import dataclasses
import statistics
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeVar

from tfaccel.measure.racing import LOOKS
from tfaccel.measure.timing import median_interval
from tfaccel.measure.units import ratio
from tfaccel.profiling.growth import FLAT, GROWS
from tfaccel.profiling.html.plots import Line, line_chart
from tfaccel.profiling.html.svg import Chart
from tfaccel.profiling.key_figures import MEMORIES, growth_words, in_column, plain_number
from tfaccel.profiling.outcome import facts
from tfaccel.profiling.records import Record, Records, number

# More points than a screen can show, and more rows than anyone reads, are thinned.
MAX_POINTS, MAX_ROWS, MAX_INTERVALS = 400, 40, 40
PLAN = "plan"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the page."""

    caption: str  # what it shows
    headings: Sequence[str]  # one a column; none for a table whose rows are headed alone
    rows: Sequence[Sequence[str]]  # the cells; the first of each heads its row
    numbers: Collection[str] = ()  # the headings of the columns that are set flush right
    chosen: int | None = None  # the row that stands out, if any


class Plotted(NamedTuple):
    """A plot as SVG, and its numbers."""

    plot: str
    table: Table


def thinned(items: Sequence[T], most: int) -> list[T]:
    """At most so many items, evenly spaced, the first and the last among them.

    >>> thinned(range(100), 4)
    [0, 33, 66, 99]
    """
    if len(items) <= most:
        return list(items)
    return [items[index * (len(items) - 1) // (most - 1)] for index in range(most)]


def _line(label: str, intervals: list[Record], key: str, paint: int, style: str = "-") -> Line:
    pairs = [(number(record, "step"), number(record, key)) for record in intervals]
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    return Line(label, [x for x, _ in known], [y for _, y in known], paint, style)


def _marks(records: Records) -> dict[str, list[float]]:
    steps = [number(record, "step") for record in records.tuning]
    return {"trials": [step for step in steps if step is not None]}


def _range(values: Sequence[float], unit: str) -> str:
    low, middle, high = map(plain_number, (min(values), statistics.median(values), max(values)))
    return f"from {low} to {high} {unit}, {middle} {unit} in the middle"


def _numbers(caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The table to a plot; where the second column, the plan, never changes the caption has it."""
    shown = thinned(rows, MAX_ROWS)
    plans = {row[1] for row in rows} if headings[1] == PLAN else set()
    if len(plans) == 1:
        caption += f", {plan}" if (plan := plans.pop()) else ""
        headings = [headings[0], *headings[2:]]
        shown = [[row[0], *row[2:]] for row in shown]
    if len(shown) < len(rows):
        caption += f" ({len(shown)} of {len(rows)}, evenly spaced)"
    return Table(caption, headings, shown, numbers=[name for name in headings if name != PLAN])


def step_time(records: Records) -> Plotted | None:
    """Median and 95th percentile of the step, an interval a point; None where unknown."""
    shown = thinned(records.intervals, MAX_POINTS)
    median = _line("median", shown, "time/step_ms", 0)
    slow = _line("95th percentile", shown, "time/step_ms_p95", 1, "--")
    if not median.x:
        return None
    said = f"The median step took {_range(median.y, 'ms')}."
    chart = Chart("steptime", "Step time over the run", said, "ms")
    rows = [
        (
            plain_number(number(record, "step")),
            str(record.get("plan") or ""),
            in_column(number(record, "time/step_ms")),
            in_column(number(record, "time/step_ms_p95")),
            _waiting(record),
        )
        for record in records.intervals
    ]
    headings = ("step", PLAN, "median, ms", "95\N{NO-BREAK SPACE}%, ms", "waiting")
    lines = [line for line in (median, slow) if line.x]
    numbers = _numbers("Step time of the intervals that end at each step", headings, rows)
    return Plotted(line_chart(chart, lines, marks=_marks(records)), numbers)


def _waiting(record: Record) -> str:
    value = number(record, "time/input_wait_share")
    return "" if value is None else f"{in_column(100 * value)} %"


def throughput(records: Records) -> Plotted | None:
    """Samples a second, or batches where the batch has no known size; None where unknown."""
    shown = thinned(records.intervals, MAX_POINTS)
    units = {"throughput/samples_per_sec": "samples/s", "throughput/batches_per_sec": "batches/s"}
    lines = {key: _line(unit, shown, key, 0) for key, unit in units.items()}
    known = {key: line for key, line in lines.items() if line.x}
    if not known:
        return None
    line = next(iter(known.values()))
    said = f"The throughput was {_range(line.y, line.label)}."
    chart = Chart("throughput", "Throughput over the run", said, line.label)
    rows = [
        (plain_number(number(record, "step")), *(in_column(number(record, key)) for key in known))
        for record in records.intervals
    ]
    headings = ("step", *(units[key] for key in known))
    numbers = _numbers("Throughput of the intervals that end at each step", headings, rows)
    return Plotted(line_chart(chart, [line], marks=_marks(records)), numbers)


def memory(records: Records) -> Plotted | None:
    """The memory of the process and the device, an interval a point; None where unknown."""
    shown = thinned(records.intervals, MAX_POINTS)
    known = {
        whose: line
        for paint, (key, whose) in enumerate(MEMORIES.items())
        if (line := _line(whose, shown, f"memory/{key}_bytes", paint)).x
    }
    if not known:
        return None
    lines = [
        dataclasses.replace(line, y=[value / 2**20 for value in line.y]) for line in known.values()
    ]
    found = facts(records)
    keys = [key for key, whose in MEMORIES.items() if whose in known]
    said = "; ".join(f"{MEMORIES[key]}: {_went(found, key)}" for key in keys)
    rows = [
        (
            plain_number(number(record, "step")),
            *(_mebibytes(number(record, f"memory/{key}_bytes")) for key in keys),
        )
        for record in records.intervals
    ]
    headings = ("step", *(f"{MEMORIES[key]}, MiB" for key in keys))
    numbers = _numbers("Memory at the end of the intervals", headings, rows)
    chart = Chart("memory", "Memory over the run", f"Memory of the {said}.", "MiB")
    return Plotted(line_chart(chart, lines, marks=_marks(records)), numbers)


def _went(found: Record, key: str) -> str:
    verdict = found.get(f"{key}_memory")
    if verdict == GROWS:
        return f"grows by {growth_words(found, key)}"
    return "flat" if verdict == FLAT else "too few steps to tell whether it grows"


def _mebibytes(value: float | None) -> str:
    return "" if value is None else in_column(value / 2**20)


class _Look(NamedTuple):
    """The known speedup of a plan at a step."""

    step: float
    pairs: int
    median: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        """Fewer pairs have no interval that covers the median 95 times of 100."""
        return self.pairs >= LOOKS[0]


def _looks(comparisons: list[Record]) -> dict[str, list[_Look]]:
    """Each plan's median ratio so far, with its interval."""
    ratios: dict[str, list[tuple[float, float]]] = {}
    for record in comparisons:
        step, before, after = (
            number(record, key) for key in ("step", "baseline_seconds", "plan_seconds")
        )
        if step is not None and before is not None and after is not None and min(before, after) > 0:
            ratios.setdefault(str(record.get("plan") or ""), []).append((step, before / after))
    return {
        plan: [
            _Look(pairs[n - 1][0], n, *median_interval([value for _, value in pairs[:n]]))
            for n in thinned(range(1, len(pairs) + 1), MAX_INTERVALS)
        ]
        for plan, pairs in ratios.items()
    }


def _speedup_line(plan: str, looks: list[_Look], paint: int) -> Line:
    looks = [look for look in looks if look.has_interval] or looks
    ends = ([look.low for look in looks], [look.high for look in looks])
    band = ends if looks[-1].has_interval else None
    x, y = [look.step for look in looks], [look.median for look in looks]
    return Line(plan, x, y, paint % 8, band=band)


def speedup(records: Records) -> Plotted | None:
    """The speedup after each comparison; None without any."""
    looked = _looks(records.comparisons)
    if not looked:
        return None
    rows = [
        (
            plain_number(look.step),
            plan,
            str(look.pairs),
            ratio(look.median),
            *((ratio(look.low), ratio(look.high)) if look.has_interval else ("", "")),
        )
        for plan, looks in looked.items()
        for look in looks
    ]
    last = [f"{plan}: {ratio(looks[-1].median)}" for plan, looks in looked.items()]
    said = f"The median of all pairs so far; at the end {', '.join(last)}. 1 is no difference."
    chart = Chart("speedup", "Speedup over the run", said, "times as fast")
    lines = [_speedup_line(*item, paint) for paint, item in enumerate(looked.items())]
    numbers = _numbers(
        "Median ratio of the pairs so far, with its 95 % interval (from 6 pairs on)",
        ("step", PLAN, "pairs", "median", "low", "high"),
        rows,
    )
    return Plotted(line_chart(chart, lines, level=1.0), numbers)
