"""The page as a whole."""

import datetime
import xml.etree.ElementTree as ET

from tfaccel.profiling.html.figures import key_figures
from tfaccel.profiling.html.outcome import part
from tfaccel.profiling.html.over_steps import speedup_section, step_time_section, throughput_section
from tfaccel.profiling.html.plots import load_matplotlib
from tfaccel.profiling.html.sections import (
    machine_section,
    time_section,
    traces_section,
    trials_section,
)
from tfaccel.profiling.html.sentence import verdict
from tfaccel.profiling.html.style import CSS
from tfaccel.profiling.html.tags import Content, beside, cards, section, tag
from tfaccel.profiling.html.words import plain_number, si
from tfaccel.profiling.records import Record, Records, number
from tfaccel.version import __version__

# The page may load nothing, and its text can't run anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def html_page(records: Records) -> str:
    """A self-contained page about one run.

    The same records give the same page, byte for byte, with the same matplotlib.

    Args:
        records: what `tfaccel.profiling.records.read_records` read.

    Returns:
        The text of an HTML file.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    load_matplotlib()  # a page without plots must not pass for a whole one
    name = _model_name(records.run)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", f"{name}: tfaccel report"),
        tag("style", CSS),
    )
    page = tag("html", head, tag("body", *_body(records, name)), lang="en")
    return "<!DOCTYPE html>\n" + ET.tostring(page, encoding="unicode", method="html") + "\n"


def _body(records: Records, name: str) -> list[Content]:
    header = tag(
        "header",
        tag("h1", name),
        tag("p", _where_and_when(records.run), class_="quiet"),
        tag("p", verdict(records), class_="verdict"),
        *(tag("p", note) for note in _notes(records)),
    )
    sections = (
        section("Key figures", cards(key_figures(records))),
        speedup_section(records),
        beside(step_time_section(records), throughput_section(records)),
        time_section(records),
        trials_section(records),
        traces_section(records),
        machine_section(records),
    )
    shown = [item for item in sections if item is not None]
    return [header, tag("main", *shown), tag("footer", tag("p", _foot(records), class_="quiet"))]


def _model_name(run: Record) -> str:
    return str(part(run, "model").get("name") or "A model")


def _where_and_when(run: Record) -> str:
    machine, parameters = part(run, "machine"), number(part(run, "model"), "parameters")
    gpus = machine.get("gpus")
    names = [str(gpu.get("name")) for gpu in gpus or () if isinstance(gpu, dict)]
    cores = number(machine, "cores")
    cpu = str(machine.get("cpu") or "")
    said = [
        "" if parameters is None else f"{si(parameters, '').strip()} parameters",
        ", ".join(names) if names else cpu + (f", {cores:.0f} cores" if cpu and cores else ""),
        _date(str(run.get("started") or "")),
    ]
    return " \N{MIDDLE DOT} ".join(filter(None, said))


def _date(text: str) -> str:
    """`2026-11-21T02:00:00+00:00` as people write it; what is no such date as it is."""
    try:
        return datetime.datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return text


def _notes(records: Records) -> list[str]:
    notes = []
    if not records.summary:
        notes.append(
            "The run wrote no summary: it was stopped, or is going on. These are the figures of "
            "its last interval."
        )
    if records.earlier:
        notes.append(f"The file holds {len(records.earlier) + 1} runs; this is the last one.")
    return notes


def _foot(records: Records) -> str:
    skipped = records.skipped
    lines = f" {plain_number(skipped)} lines of the file could not be read." if skipped else ""
    return f"Made by tfaccel report, version {__version__}.{lines}"
