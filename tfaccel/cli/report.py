"""tfaccel report: a profile as an HTML page."""

import argparse
import dataclasses
import json
import os
import pathlib

import rich.console
import rich.text

from tfaccel.cli._command import Command, UsageError
from tfaccel.measure.tables import markdown_table, terminal_table
from tfaccel.profiling.html import html_page
from tfaccel.profiling.key_figures import Figure, key_figures
from tfaccel.profiling.outcome import facts
from tfaccel.profiling.records import FILE_NAME, Record, Records, plain, read_records
from tfaccel.profiling.words import verdict

PAGE_NAME = "report.html"
_HEADINGS = ("figure", "value", "note")


@dataclasses.dataclass(frozen=True)
class Written:
    """The page that was written, and what it says in short."""

    page: pathlib.Path  # the file
    verdict: str  # the sentence that the run comes to
    figures: tuple[Figure, ...]  # the key figures in words
    facts: Record  # the same as numbers, with the keys of a summary record

    def __rich__(self) -> rich.console.Group:
        table = terminal_table(_HEADINGS, self._rows())
        written = rich.text.Text(f"Written: {self.page}", overflow="fold")
        return rich.console.Group(rich.text.Text(self.verdict), table, written)

    def to_json(self) -> str:
        """The page's path, the verdict and the facts."""
        found = {"output": str(self.page), "verdict": self.verdict, "summary": plain(self.facts)}
        return json.dumps(found, indent=2)

    def to_markdown(self) -> str:
        """The verdict, the figures as a table, the page's path."""
        table = markdown_table(_HEADINGS, self._rows())
        return "\n".join([self.verdict, "", table, "", f"Written: {self.page}", ""])

    def _rows(self) -> list[tuple[str, str, str]]:
        return [(figure.label, figure.value, figure.note) for figure in self.figures]


def _define(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", help=f"a {FILE_NAME}, or its folder")
    parser.add_argument(
        "-o", "--output", help=f"the page to write; {PAGE_NAME} beside the profile by default"
    )


def _run(args: argparse.Namespace) -> Written:
    source = _source(pathlib.Path(args.profile))
    page = pathlib.Path(args.output) if args.output else source.with_name(PAGE_NAME)
    records = _records(source)
    if page.is_dir() or (page.exists() and os.path.samefile(page, source)):
        raise UsageError(f"--output must be a file other than the profile. Received: {page}")
    try:
        text = html_page(records)
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from error
    _write(page, text)
    return Written(page, verdict(records), tuple(key_figures(records)), facts(records))


def _source(path: pathlib.Path) -> pathlib.Path:
    if path.is_dir():
        if not (path / FILE_NAME).is_file():
            raise UsageError(
                f"The folder {path} holds no {FILE_NAME}: give the log_dir of "
                "tfaccel.ProfilerCallback."
            )
        return path / FILE_NAME
    if not path.exists():
        raise UsageError(f"There is no file {path}.")
    return path


def _records(path: pathlib.Path) -> Records:
    try:
        return read_records(path)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error


def _write(page: pathlib.Path, text: str) -> None:
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        # A name may hold half a character (a lone surrogate), which UTF-8 lacks.
        page.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"{page} can't be written: {error}") from error


COMMAND = Command(_define, _run)
