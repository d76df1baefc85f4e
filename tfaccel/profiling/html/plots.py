"""The plots, drawn by matplotlib at the width of a phone: larger screens enlarge them."""

import contextlib
import dataclasses
import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfaccel.profiling.html.svg import Chart, inline_svg, stand_in
from tfaccel.profiling.key_figures import plain_number

# Inches of 72 SVG units: 360 units are about a phone's width, so that text of 11
# units is about 11 pixels high there.
_WIDTH, _HEIGHT = 5.0, 3.0
_TEXT = stand_in("currentColor")
_GRID = stand_in("var(--grid)")
_LOOKS: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched, selected
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 11,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _TEXT,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "legend.frameon": False,
    "legend.borderaxespad": 0.0,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
}
_MAX_NAME = 44  # characters that fit the width


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    paint: int  # which of the page's eight colours
    style: str = "-"  # matplotlib's
    # The lower and upper ends of the points' intervals, if they have any.
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclasses.dataclass(frozen=True)
class Bar:
    """A stacked bar."""

    label: str  # what stands above it
    parts: Mapping[str, float]  # the values by name; the order is that of the chart's names


def required(name: str) -> Any:
    """A module that only the extra `report` installs.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"The report needs {error.name}: pip install 'tfaccel[report]'", name=error.name
        ) from None


@contextlib.contextmanager
def _drawing(name: str) -> Iterator[None]:
    """A block with matplotlib's defaults and this page's looks, not the user's settings."""
    matplotlib = required("matplotlib")
    with matplotlib.rc_context(), warnings.catch_warnings():
        # The browser has letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_LOOKS | {"svg.hashsalt": name})
        yield


def _fitting(name: str) -> str:
    """A name from a file, as XML can hold it and the width takes it."""
    name = "".join(letter for letter in name if letter.isprintable())
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _colour(paint: int) -> str:
    return stand_in(f"var(--paint-{paint})")


def line_chart(
    chart: Chart,
    lines: Sequence[Line],
    *,
    level: float | None = None,
    marks: Mapping[str, Sequence[float]] | None = None,
) -> str:
    """Values over steps.

    Args:
        chart: what is said about it.
        lines: at least one.
        level: a value to draw a line at; None to begin the axis at 0 instead.
        marks: steps at which something happened, by its name.
    """
    with _drawing(chart.name):
        figure = required("matplotlib.figure").Figure(
            figsize=(_WIDTH, _HEIGHT), layout="constrained"
        )
        axes = figure.subplots()
        for line in lines:
            _draw_line(axes, line)
        for label, steps in (marks or {}).items():
            for index, step in enumerate(steps):
                named = f"_{label}" if index else label
                axes.axvline(step, color=_TEXT, linewidth=1, linestyle=":", label=named)
        if level is None:
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        else:
            axes.axhline(level, color=_TEXT, linewidth=1)
        ticker = required("matplotlib.ticker")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        # By itself matplotlib takes more ticks, with longer labels, once it knows the room.
        axes.yaxis.set_major_locator(ticker.MaxNLocator(6))
        axes.yaxis.set_major_formatter(lambda value, _: plain_number(value))
        axes.set_xlabel("step")
        axes.set_ylabel(chart.unit)
        if len(axes.get_legend_handles_labels()[0]) > 1:
            figure.legend(loc="outside upper left", ncols=3)
        return inline_svg(figure, chart)


def _draw_line(axes: Any, line: Line) -> None:
    # A single point makes no line.
    marker = "o" if len(line.x) < 30 else ""
    axes.plot(
        line.x,
        line.y,
        color=_colour(line.paint),
        linestyle=line.style,
        linewidth=1.8,
        marker=marker,
        markersize=3.5,
        label=_fitting(line.label),
    )
    if line.band is not None:
        axes.fill_between(line.x, *line.band, color=_colour(line.paint), alpha=0.22, linewidth=0)


def bar_chart(chart: Chart, bars: Sequence[Bar], names: Sequence[str]) -> str:
    """Stacked horizontal bars, one below the other.

    Args:
        chart: what is said about it.
        bars: at least one.
        names: the parts in their order; eight at most, as there are colours.
    """
    with _drawing(chart.name):
        size = (_WIDTH, 1.4 + 0.7 * len(bars))
        figure = required("matplotlib.figure").Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for row, bar in enumerate(bars):
            _draw_bar(axes, row, bar, names)
        patch = required("matplotlib.patches").Patch
        shown = [name for name in names if any(bar.parts.get(name) for bar in bars)]
        keys = [
            patch(facecolor=_colour(names.index(name)), edgecolor=_TEXT, linewidth=0.5, label=name)
            for name in shown
        ]
        figure.legend(handles=keys, loc="outside upper left", ncols=3, fontsize=10)
        axes.set_ylim(len(bars) - 0.5, -0.7)
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(chart.unit)
        return inline_svg(figure, chart)


def _draw_bar(axes: Any, row: int, bar: Bar, names: Sequence[str]) -> None:
    axes.text(0, row - 0.32, _fitting(bar.label), ha="left", va="bottom")
    left = 0.0
    for index, name in enumerate(names):
        value = bar.parts.get(name, 0.0)
        if value > 0:
            axes.barh(
                row,
                value,
                left=left,
                height=0.5,
                color=_colour(index),
                edgecolor=_TEXT,  # neighbours of like brightness stay apart
                linewidth=0.5,
            )
            left += value
