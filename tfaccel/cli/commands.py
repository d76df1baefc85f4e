"""The commands: parsing and dispatch, and nothing else.

Standard output holds the result alone, so that `tfaccel doctor --format=json | jq`
works: whatever a command, Keras or a model's own code prints on the way goes to
standard error. `tfaccel run` has no result: what it runs has the process to itself.
"""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from tfaccel.cli._command import Handover, Listed, Parser, Result, UsageError
from tfaccel.cli._status import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from tfaccel.version import __version__

COMMANDS: tuple[Listed, ...] = (
    Listed(
        "doctor",
        "looks at the machine and the installation, and says what to do about them",
        "tfaccel.cli.doctor.command",
    ),
    Listed("run", "runs a Keras program as it is, with every fit accelerated", "tfaccel.cli.run"),
    Listed(
        "bench",
        "times a training step: stock Keras, each pass, the chosen plan; CPU and GPU",
        "tfaccel.cli.bench",
    ),
    Listed("tune", "finds the fastest faithful plan for a model and its data", "tfaccel.cli.tune"),
    Listed(
        "accelerate",
        "finds the fastest faithful predictions of a model, and saves them",
        "tfaccel.cli.accelerate",
    ),
    Listed(
        "explain",
        "says how each layer runs, and why not faster",
        "tfaccel.cli.explain",
    ),
    Listed(
        "report",
        "makes one HTML page, with plots, of what ProfilerCallback wrote",
        "tfaccel.cli.report",
    ),
    Listed("cache", "shows, exports, imports or clears what was learned here", "tfaccel.cli.cache"),
)
FORMATS = ("table", "json", "markdown")

# A table in a file or a pipe: wide enough that few cells wrap.
_WIDTH = 140
# Errors of TensorFlow's run to pages; `--debug` has them whole.
_MESSAGE_LENGTH = 400


def command(words: list[str]) -> int:
    """Runs the command that the words name (`tfaccel.cli.main.main`)."""
    done = _done(words)
    return done.start() if isinstance(done, Handover) else done


def _done(words: list[str]) -> int | Handover:
    """The exit status of a command, or a program to run where nothing catches its errors."""
    try:
        args, unknown = _parser(words[:1]).parse_known_args(words or ["--help"])
        if unknown:
            flags = f"`{getattr(args, 'who', 'tfaccel')} --help` lists the flags"
            raise UsageError(f"unrecognized arguments: {' '.join(unknown)} ({flags})")
        return _run(args)
    except SystemExit:  # help or the version was shown
        return 0
    except UsageError as error:
        return _complain("tfaccel", error, EXIT_USAGE)
    except BrokenPipeError:
        return _reader_left()
    except KeyboardInterrupt:
        return _complain("tfaccel", "interrupted", EXIT_INTERRUPTED)


def _parser(asked: Sequence[str]) -> argparse.ArgumentParser:
    """The parser, in which only the command that is asked for has its arguments."""
    parser = Parser("tfaccel", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"tfaccel {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for each in COMMANDS:
        summary = each.summary
        one = commands.add_parser(each.name, help=summary, description=summary, allow_abbrev=False)
        if each.name not in asked:
            continue
        command = each.load()
        one.set_defaults(command=command, who=f"tfaccel {each.name}")
        command.define(one)
        one.add_argument(
            "--format", choices=FORMATS, default="table", help="how to print the result"
        )
        one.add_argument("--debug", action="store_true", help="show where an error comes from")
    return parser


def _run(args: argparse.Namespace) -> int | Handover:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            result = args.command.run(args)
        if isinstance(result, Handover):
            return result
        _show(result, args.format)
        return getattr(result, "exit_code", 0)
    except UsageError as error:
        return _complain(args.who, error, EXIT_USAGE)
    except BrokenPipeError:
        raise
    except Exception as error:
        if args.debug:
            importlib.import_module("traceback").print_exc()
        return _complain(args.who, f"{type(error).__name__}: {error}", EXIT_FAILED)


def _show(result: Result, form: str) -> None:
    if form == "json":
        print(result.to_json(), flush=True)
    elif form == "markdown":
        print(result.to_markdown().rstrip("\n"), flush=True)
    else:
        # Here and not at the top, as a program under `tfaccel run` need not wait for it.
        console = importlib.import_module("rich.console").Console
        console(width=None if sys.stdout.isatty() else _WIDTH).print(result)
        sys.stdout.flush()


def _complain(who: str, what: object, status: int) -> int:
    """Says in one line what went wrong."""
    line = " ".join(f"{who}: {what}".split())
    cut = line if len(line) <= _MESSAGE_LENGTH else f"{line[:_MESSAGE_LENGTH]}..."
    print(cut, file=sys.stderr)
    return status


def _reader_left() -> int:
    """The exit status where the reader of standard output has left (`| head`): no error."""
    # Python flushes once more as it ends, and would complain then.
    # https://docs.python.org/3/library/signal.html#note-on-sigpipe
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_FAILED
