"""`tfaccel run`: a Keras program as it is, with every fit accelerated.

Nothing here imports TensorFlow, nor Keras: that is for the program to do, if it does.
"""

import argparse
import importlib
import os

from tfaccel.cli import _run_workers
from tfaccel.cli._command import Command, Handover, Result, UsageError, seconds
from tfaccel.launch.program import NoProgramError, Program
from tfaccel.launch.start import Options

_USAGE = """tfaccel run [options] script.py [arguments ...]
       tfaccel run [options] -m module [arguments ...]"""


def _define(parser: argparse.ArgumentParser) -> None:
    parser.usage = _USAGE
    parser.add_argument(
        "-m", dest="is_module", action="store_true", help="run a module, as `python -m` does"
    )
    parser.add_argument(
        "--tuning",
        choices=("off", "quick", "full"),
        help="how far the search may go in each fit, as AccelCallback(tuning=...)",
    )
    parser.add_argument(
        "--profile", metavar="DIR", help="measure each fit, and write DIR/profile.jsonl"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="tell in each fit what was chosen, and why"
    )
    parser.add_argument(
        "--on_batch",
        action="store_true",
        help="accelerate train_on_batch, test_on_batch and predict_on_batch of each model, too, "
        "as tfaccel.accelerate_step(model) does",
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="measure which environment (oneDNN, threads, allocator) makes the program's steps "
        "fastest, and keep it for later runs. This begins the program many times and stops it "
        "after its first steps: files that it writes till then stay, so use a small run",
    )
    parser.add_argument(
        "--max_seconds", type=seconds, default=600.0, help="seconds for a sweep (600)"
    )
    _run_workers.define(parser)
    parser.add_argument("--measure_into", help=argparse.SUPPRESS)  # a sweep's own turns
    parser.add_argument("program", help="a script, or after -m a module")
    rest = parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="given to the program as they are"
    )
    rest.required = False  # or Python 3.11 names it among what is missing


def _run(args: argparse.Namespace) -> Result | Handover:
    program = Program(args.program, tuple(args.arguments), args.is_module)
    try:
        program.check()
    except NoProgramError as error:
        raise UsageError(str(error)) from error
    request = _run_workers.requested(args)
    if args.sweep:
        # Its tables, and the processes that it begins, are for a sweep alone.
        sweeping = importlib.import_module("tfaccel.launch.sweep.sweep")
        try:
            return sweeping.sweep(program, args.max_seconds)
        except sweeping.TurnError as error:
            raise UsageError(f"--sweep: {error}") from error
    options = Options(
        tuning=args.tuning,
        verbose=args.verbose,
        # The program may change the working directory.
        profile=None if args.profile is None else os.path.abspath(args.profile),
        measure_into=args.measure_into,
        on_batch=args.on_batch,
        backup_dir=request.backup_dir,
        save_freq=args.save_freq,
        launched=args.launched,
    )
    return _run_workers.handover(request, program, options)


COMMAND = Command(_define, _run)
