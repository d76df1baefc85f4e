"""The page as a whole: its template, `page.html.j2`, filled with what the records say."""

import datetime
import pathlib

from tfaccel.profiling.html import over_steps, sections
from tfaccel.profiling.html.plots import required
from tfaccel.profiling.key_figures import key_figures, si
from tfaccel.profiling.outcome import facts, part, plan_of
from tfaccel.profiling.records import Record, Records, number
from tfaccel.profiling.words import verdict
from tfaccel.version import __version__


def html_page(records: Records) -> str:
    """A self-contained page about one run.

    The same records give the same page, byte for byte, with the same matplotlib and jinja2.

    Args:
        records: what `tfaccel.profiling.records.read_records` read.

    Returns:
        The text of an HTML file.

    Raises:
        ModuleNotFoundError: matplotlib or jinja2 is not installed.
    """
    required("matplotlib")  # a page without plots must not pass for a whole one
    jinja2 = required("jinja2")
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found = facts(records)
    return templates.get_template("page.html.j2").render(
        records=records,
        name=str(part(records.run, "model").get("name") or "A model"),
        where_and_when=_where_and_when(records.run),
        verdict=verdict(records),
        figures=key_figures(records),
        input_bound=found["input_bound"] is True,
        plan=plan_of(found),
        speedup=over_steps.speedup(records),
        step_time=over_steps.step_time(records),
        throughput=over_steps.throughput(records),
        memory=over_steps.memory(records),
        time=sections.time(records),
        trials=sections.trials(records),
        traces=sections.traces(records),
        machine=sections.machine(records),
        version=__version__,
    )


def _where_and_when(run: Record) -> str:
    machine, parameters = part(run, "machine"), number(part(run, "model"), "parameters")
    gpus = sections.listed(machine, "gpus")
    names = [str(gpu.get("name")) for gpu in gpus if isinstance(gpu, dict)]
    cores = number(machine, "cores")
    cpu = str(machine.get("cpu") or "")
    said = [
        "" if parameters is None else f"{si(parameters, '').strip()} parameters",
        ", ".join(names) if names else cpu + (f", {cores:.0f} cores" if cpu and cores else ""),
        _date(str(run.get("started") or "")),
    ]
    return " \N{MIDDLE DOT} ".join(filter(None, said))


def _date(text: str) -> str:
    """`2026-11-21T02:00:00+00:00` as people write it; other text as it is."""
    try:
        return datetime.datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return text
