"""`tfaccel cache`: shows, exports, imports and clears what was learned on this machine."""

import argparse
import dataclasses
import json
import pathlib

import rich.console
import rich.text

from tfaccel.autotune.portable import (
    Contents,
    clear_cache,
    contents,
    export_cache,
    import_cache,
)
from tfaccel.autotune.report import Report
from tfaccel.cli._command import Command, UsageError
from tfaccel.measure.tables import markdown_table, terminal_table
from tfaccel.measure.units import ratio

_HEADINGS = ("plan", "speedup", "trials", "file")


@dataclasses.dataclass(frozen=True)
class Done:
    """What the cache holds, or what was done to it, in a sentence."""

    found: Contents
    said: str

    def __rich__(self) -> rich.console.Group:
        rows = self._rows()
        table = [terminal_table(_HEADINGS, rows, numbers=_HEADINGS[1:3])] if rows else []
        return rich.console.Group(*table, rich.text.Text(self.said, overflow="fold"))

    def to_json(self) -> str:
        """The folder, the plans with their speed-ups, the count of kernels' rankings."""
        plans = [dict(zip(_HEADINGS, row, strict=True)) for row in self._rows()]
        found = {"folder": str(self.found.folder), "plans": plans}
        return json.dumps(found | {"rankings": len(self.found.rankings), "said": self.said})

    def to_markdown(self) -> str:
        """The plans as a table, and the sentence."""
        table = markdown_table(_HEADINGS, self._rows(), numbers=_HEADINGS[1:3])
        return f"{table}\n\n{self.said}\n"

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [_row(name, plan) for name, plan in self.found.plans.items()]


def _row(name: str, plan: dict) -> tuple[str, str, str, str]:
    try:
        report = Report.from_json(json.dumps(plan["report"]))
    except ValueError as error:
        return f"unreadable here: {error}", "", "", name
    return str(report.plan), ratio(report.speedup), str(len(report.tried()) - 1), name


def _define(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("show", "export", "import", "clear"),
        help="show what is there; write it to a file; add what a file holds; remove it",
    )
    parser.add_argument("file", nargs="?", help="the file to write, or to read")
    parser.add_argument(
        "--cache_dir", help="the folder; $TFACCEL_CACHE_DIR or ~/.cache/tfaccel by default"
    )


def _run(args: argparse.Namespace) -> Done:
    if (args.file is None) == (args.action in ("export", "import")):
        needs = "needs" if args.file is None else "takes no"
        raise UsageError(f"`{args.action}` {needs} a file")
    found = contents(args.cache_dir)
    try:
        said = _said(args.action, args.file, found)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    return Done(contents(args.cache_dir), said)


def _said(action: str, file: str | None, found: Contents) -> str:
    """Does what was asked for, and returns a sentence on it."""
    holds = f"{len(found.plans)} plans and times of {len(found.rankings)} products"
    if action == "export" and file:
        export_cache(pathlib.Path(file), found)
        return f"Written to {file}: {holds}."
    if action == "import" and file:
        plans, rankings = import_cache(pathlib.Path(file), found)
        return f"Added to {found.folder}: {plans} plans and times of {rankings} products."
    if action == "clear":
        return f"Removed from {found.folder}: {clear_cache(found)} files."
    more = f", and {len(found.foreign)} files of other machines or versions" * bool(found.foreign)
    return f"In {found.folder}: {holds}{more}."


COMMAND = Command(_define, _run)
