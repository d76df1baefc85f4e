"""`tfaccel tune`: the fastest faithful plan for a model and a file of data."""

import argparse
import dataclasses
import json
import os
import pathlib
import tempfile

import rich.console
from rich.markup import escape

from tfaccel.autotune.eligibility import ineligibility
from tfaccel.autotune.offline import offline_trials
from tfaccel.autotune.options import Options, make_options
from tfaccel.autotune.report import Report
from tfaccel.autotune.tune_and_cache import tune_and_cache
from tfaccel.cli._command import Command, UsageError, comma_list, seconds
from tfaccel.cli._progress import Progress, progress
from tfaccel.cli.inputs.feeds import define_feed_flags, file_feed
from tfaccel.cli.inputs.models import Chosen, define_model_arguments, load_model
from tfaccel.data.findings import first_line
from tfaccel.system.json_files import replace_text


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What tuning found, and where it was written."""

    report: Report  # every trial and the choice
    notes: tuple[str, ...] = ()  # what was chosen for the user, and which files were written
    exit_code: int = 0  # 1 where a file could not be written

    def to_json(self) -> str:
        """The report, with the notes."""
        return json.dumps(json.loads(self.report.to_json()) | {"notes": self.notes}, indent=2)

    def to_markdown(self) -> str:
        """The report's Markdown, with the notes."""
        return "\n".join([self.report.to_markdown(), *(f"- {note}" for note in self.notes), ""])

    def __rich__(self) -> rich.console.Group:
        return rich.console.Group(self.report, *map(escape, self.notes))


def _define(parser: argparse.ArgumentParser) -> None:
    define_model_arguments(parser)
    define_feed_flags(parser)
    parser.add_argument("-o", "--output", help="the file for the plan")
    parser.add_argument("--report", help="a file for the report, as JSON")
    parser.add_argument(
        "--max_seconds", type=seconds, default=120.0, help="seconds for all trials (120)"
    )
    parser.add_argument(
        "--includes", type=comma_list, help="names of passes to try, such as fused_norm,xla"
    )
    parser.add_argument(
        "--excludes", type=comma_list, default=[], help="names of passes to leave out"
    )


def _run(args: argparse.Namespace) -> Tuned:
    for flag, what in (("data", "x.npz"), ("output", "plan.json")):
        if not getattr(args, flag):
            raise UsageError(f"`tfaccel tune` needs --{flag}={what}")
    output = _writable("output", args.output)
    report_path = _writable("report", args.report) if args.report else None
    settings = _settings(args)
    with progress() as told:
        told.stage(f"Building {args.model}")
        chosen = load_model(args.model, args)
        report, source = _tuned(chosen, args, settings, told)
    notes = [*chosen.notes, f"Tuned on {source}."]
    failed = False
    for path, text in ((output, report.plan.to_json()), (report_path, report.to_json())):
        if path is not None:
            written, note = _write(path, text)
            notes.append(note)
            failed = failed or not written
    return Tuned(report, tuple(notes), exit_code=int(failed))


def _settings(args: argparse.Namespace) -> Options:
    try:
        return make_options(
            "auto",
            includes=args.includes,
            excludes=args.excludes,
            tolerance=None,
            tuning_share=None,
            max_tuning_seconds=args.max_seconds,
            cache_dir=None,
        )
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"--includes or --excludes: {first_line(error)}") from error


def _tuned(
    chosen: Chosen, args: argparse.Namespace, settings: Options, told: Progress
) -> tuple[Report, str]:
    """The report, and on what data."""
    stopped = ineligibility(chosen.model)
    if stopped:
        raise UsageError(stopped)
    feed = file_feed(chosen, pathlib.Path(args.data), args.batch_size)
    told.stage("Running the model's own step")
    with offline_trials(chosen.model, feed.dataset, clock=settings.clock) as bench:
        told.stage("Trying plans", settings.budget.seconds(bench.workload))
        report = tune_and_cache(bench, settings, told.trial)
    return report, f"{feed.source}, batches of {feed.batch_size}"


def _writable(flag: str, name: str) -> pathlib.Path:
    """The path, after a file was made beside it: better now than after the tuning."""
    path = pathlib.Path(name)
    if path.is_dir():
        raise UsageError(f"--{flag} must be a file. Received a folder: {path}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(f"{path} can't be written to")
    except OSError as error:
        raise UsageError(f"--{flag}={path} can't be written: {error.strerror or error}") from error
    return path


def _write(path: pathlib.Path, text: str) -> tuple[bool, str]:
    """Writes a file whole or not at all; an error becomes a note and never costs the result."""
    try:
        replace_text(path, text + "\n")
    except OSError as error:
        return False, f"{path} could not be written ({error.strerror or error}). It was: {text}"
    return True, f"Written: {path}"


COMMAND = Command(_define, _run)
