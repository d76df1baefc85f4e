"""The command line: parsing and dispatch, and nothing else.

Standard output holds the result alone, so that `tfaccel doctor --format=json | jq`
works: whatever a command, Keras or a model's own code prints on the way goes to
standard error.
"""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

import rich.console

from tfaccel.cli import accelerate, bench, cache, explain, report, tune
from tfaccel.cli._command import Command, Parser, Result, UsageError
from tfaccel.cli.doctor import command
from tfaccel.version import __version__

COMMANDS: tuple[Command, ...] = (
    command.COMMAND,
    bench.COMMAND,
    tune.COMMAND,
    accelerate.COMMAND,
    explain.COMMAND,
    report.COMMAND,
    cache.COMMAND,
)
FORMATS = ("table", "json", "markdown")

EXIT_FAILED = 1
# As argparse, and so most programs written in Python, has it.
EXIT_USAGE = 2
# 128 + SIGINT, as shells have it.
EXIT_INTERRUPTED = 130

# A table in a file or a pipe: wide enough that few cells wrap.
_WIDTH = 140
# Errors of TensorFlow's run to pages; `--debug` has them whole.
_MESSAGE_LENGTH = 400


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command, or shows help.

    Args:
        arguments: the words after `tfaccel`; None for those of this process.

    Returns:
        The exit status: 0; 1 where a command failed, or found a problem; 2 for words
        that can't be taken; 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(_parser().parse_args(words or ["--help"]))
    except SystemExit:  # help or the version was shown
        return 0
    except UsageError as error:
        return _complain("tfaccel", error, EXIT_USAGE)
    except BrokenPipeError:
        return _reader_left()
    except KeyboardInterrupt:
        return _complain("tfaccel", "interrupted", EXIT_INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    parser = Parser("tfaccel", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"tfaccel {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for each in COMMANDS:
        summary = each.summary
        one = commands.add_parser(each.name, help=summary, description=summary, allow_abbrev=False)
        one.set_defaults(command=each)
        each.define(one)
        one.add_argument(
            "--format", choices=FORMATS, default="table", help="how to print the result"
        )
        one.add_argument("--debug", action="store_true", help="show where an error comes from")
    return parser


def _run(args: argparse.Namespace) -> int:
    who = f"tfaccel {args.command.name}"
    try:
        with contextlib.redirect_stdout(sys.stderr):
            result = args.command.run(args)
        _show(result, args.format)
        return getattr(result, "exit_code", 0)
    except UsageError as error:
        return _complain(who, error, EXIT_USAGE)
    except BrokenPipeError:
        raise
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        return _complain(who, f"{type(error).__name__}: {error}", EXIT_FAILED)


def _show(result: Result, form: str) -> None:
    if form == "json":
        print(result.to_json(), flush=True)
    elif form == "markdown":
        print(result.to_markdown().rstrip("\n"), flush=True)
    else:
        rich.console.Console(width=None if sys.stdout.isatty() else _WIDTH).print(result)
        sys.stdout.flush()


def _complain(who: str, what: object, status: int) -> int:
    """Says in one line what went wrong."""
    line = " ".join(f"{who}: {what}".split())
    cut = line if len(line) <= _MESSAGE_LENGTH else f"{line[:_MESSAGE_LENGTH]}..."
    print(cut, file=sys.stderr)
    return status


def _reader_left() -> int:
    """Whoever read standard output has had enough (`| head`): no error of ours."""
    # Python flushes once more as it ends, and would complain then.
    # https://docs.python.org/3/library/signal.html#note-on-sigpipe
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_FAILED
