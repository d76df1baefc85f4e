"""The flags of `tfaccel run` for several workers, and what they start."""

import argparse
import functools
import importlib
import os
import sys

from tfaccel.cli._command import Handover, UsageError, positive_int
from tfaccel.launch.program import Program
from tfaccel.launch.start import Options, start
from tfaccel.launch.workers.cluster import manager
from tfaccel.launch.workers.errors import LaunchError
from tfaccel.launch.workers.request import Request


def define(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    workers = parser.add_argument_group("several workers, whose models an AccelStrategy makes")
    workers.add_argument(
        "--workers",
        type=positive_int,
        metavar="N",
        help="start N workers on this machine; with --rendezvous, N of all machines",
    )
    workers.add_argument(
        "--hosts", metavar="FILE", help="machines, `name[:port] [slots=N]` a line: run this on each"
    )
    workers.add_argument(
        "--rendezvous", metavar="HOST:PORT", help="where workers meet, on the machine of worker 0"
    )
    workers.add_argument(
        "--worker_index",
        type=_whole,
        metavar="I",
        help="this worker's number, from 0; with --hosts that of this machine's line",
    )
    workers.add_argument(
        "--bind",
        choices=("cores", "none"),
        default="cores",
        help="whether each worker gets cores of its own (cores)",
    )
    workers.add_argument(
        "--max_restarts",
        type=_whole,
        default=0,
        metavar="K",
        help="how often all workers are started again after one failed (0)",
    )
    workers.add_argument(
        "--backup_dir", metavar="DIR", help="where each fit is kept, to go on from after a restart"
    )
    workers.add_argument(
        "--save_freq",
        type=positive_int,
        metavar="STEPS",
        help="keep it every so many steps, and not only at the ends of epochs",
    )
    workers.add_argument("--launched", action="store_true", help=argparse.SUPPRESS)


def requested(args: argparse.Namespace) -> Request:
    """The flags as a request to the launcher; UsageError for flags that exclude each other."""
    request = Request(
        workers=args.workers,
        hosts=args.hosts,
        rendezvous=args.rendezvous,
        worker_index=args.worker_index,
        max_restarts=args.max_restarts,
        # The program may change the working directory.
        backup_dir=None if args.backup_dir is None else os.path.abspath(args.backup_dir),
        bind=args.bind == "cores",
    )
    if args.save_freq is not None and args.backup_dir is None:
        raise UsageError("--save_freq needs --backup_dir")
    if request.worker_index is not None and request.hosts is None and request.rendezvous is None:
        raise UsageError("--worker_index needs --rendezvous HOST:PORT, or --hosts")
    if request.is_asked and args.sweep:
        raise UsageError("--sweep measures one process: leave out what starts workers")
    return request


def handover(request: Request, program: Program, options: Options) -> Handover:
    """What is to run: workers, or the program in this process."""
    found = manager(os.environ)
    if request.is_asked and not found:
        return Handover(functools.partial(_launched, program, options, request))
    if request.is_asked:
        print(f"tfaccel run: {found}; no worker is started here", file=sys.stderr)
    return Handover(functools.partial(_alone, program, options))


def words_of(program: Program, options: Options) -> list[str]:
    """The command line of a worker."""
    given = {
        "tuning": options.tuning,
        "profile": options.profile,
        "backup_dir": options.backup_dir,
        "save_freq": options.save_freq,
    }
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    flags += ["--verbose"] * options.verbose + ["--on_batch"] * options.on_batch
    flags += ["-m"] * program.is_module
    words = [sys.executable, "-m", "tfaccel", "run", "--launched", *flags]
    return [*words, program.name, *program.arguments]


def _launched(program: Program, options: Options, request: Request) -> int:
    launching = importlib.import_module("tfaccel.launch.workers.launch")
    try:
        return launching.launch(words_of(program, options), request)
    except LaunchError as error:
        print(f"tfaccel run: {error}", file=sys.stderr)
        return 2


def _alone(program: Program, options: Options) -> int:
    """Runs the program here, and removes its backups when it has ended well."""
    ended_well = False
    try:
        status = start(program, options)
        ended_well = not status
        return status
    except SystemExit as error:
        ended_well = not error.code
        raise
    finally:
        # The launcher of several workers waits for all of them before it does that.
        if ended_well and options.backup_dir is not None and not options.launched:
            kept = importlib.import_module("tfaccel.launch.workers.kept_fits")
            kept.forget(options.backup_dir)


def _whole(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0. Received: {text!r}")
    return int(text)
