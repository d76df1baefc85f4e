"""The command line: absl flags and dispatch, and nothing else.

Standard output holds the result alone, so that `tfaccel doctor --format=json | jq`
works: whatever a command, Keras or a model's own code prints on the way goes to
standard error.
"""

import contextlib
import difflib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence

import rich.console
from absl import flags

from tfaccel.cli import bench, explain, report, tune
from tfaccel.cli._command import Command, Result, UsageError
from tfaccel.cli.doctor import command
from tfaccel.version import __version__

COMMANDS: tuple[Command, ...] = (
    command.COMMAND,
    bench.COMMAND,
    tune.COMMAND,
    explain.COMMAND,
    report.COMMAND,
)
FORMATS = ("table", "json", "markdown")

EXIT_FAILED = 1
# As argparse, and so most programs written in Python, has it.
EXIT_USAGE = 2
# 128 + SIGINT, as shells have it.
EXIT_INTERRUPTED = 130

_HELP = ("-h", "--help")
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
        return _dispatch(words)
    except UsageError as error:
        return _complain("tfaccel", error, EXIT_USAGE)
    except BrokenPipeError:
        return _reader_left()
    except KeyboardInterrupt:
        return _complain("tfaccel", "interrupted", EXIT_INTERRUPTED)


def _dispatch(words: list[str]) -> int:
    first, rest = (words[0], words[1:]) if words else (_HELP[0], [])
    if first == "--version":
        return _say(f"tfaccel {__version__}")
    if first == "help" and len(rest) > 1:
        raise UsageError(f"help takes one command. Received: {' '.join(rest)}")
    if first in _HELP or (first == "help" and not rest):
        return _say(overview())
    if first == "help":
        return _say(command_help(find_command(rest[0])))
    command = find_command(first)
    if _asks_for_help(rest):
        return _say(command_help(command))
    try:
        values, positional = _parsed(command, rest)
        return _run(command, positional, values)
    except UsageError as error:
        return _complain(f"tfaccel {command.name}", error, EXIT_USAGE)


def find_command(word: str) -> Command:
    """The command of that name.

    Raises:
        UsageError: there is none; the message has the names that are nearest.
    """
    names = [command.name for command in COMMANDS]
    if word in names:
        return COMMANDS[names.index(word)]
    if word.startswith("-"):
        raise UsageError(f"flags come after a command ({', '.join(names)}). Received: {word}")
    near = difflib.get_close_matches(word, names)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"The commands: {', '.join(names)}."
    raise UsageError(f"there is no command {word!r}. {hint}")


def _asks_for_help(words: Iterable[str]) -> bool:
    """Whether help is asked for. It is given before flags are checked, wrong ones included."""
    for word in words:
        if word == "--":
            return False
        if word in _HELP:
            return True
    return False


def _flags(command: Command) -> flags.FlagValues:
    """The command's own flags, and those of all commands."""
    # A registry for each command, as two may want the same name.
    values = flags.FlagValues()
    flags.DEFINE_enum("format", "table", FORMATS, "how to print the result", flag_values=values)
    flags.DEFINE_boolean("debug", False, "show where an error comes from", flag_values=values)
    command.define(values)
    return values


def _parsed(command: Command, words: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    values = _flags(command)
    try:
        return values, values([f"tfaccel {command.name}", *words])[1:]
    except (flags.Error, ValueError) as error:  # absl has ValueError for --nodebug=1
        hint = f"(`tfaccel {command.name} --help` lists the flags)"
        raise UsageError(f"{_one_line(error)} {hint}") from None


def _run(command: Command, positional: Sequence[str], values: flags.FlagValues) -> int:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            result = command.run(positional, values)
        _show(result, values.format)
        return getattr(result, "exit_code", 0)
    except (UsageError, BrokenPipeError):
        raise
    except Exception as error:
        if values.debug:
            traceback.print_exc()
        said = f"{type(error).__name__}: {_one_line(error)}"
        return _complain(f"tfaccel {command.name}", said, EXIT_FAILED)


def _show(result: Result, form: str) -> None:
    if form == "json":
        _say(result.to_json())
    elif form == "markdown":
        _say(result.to_markdown().rstrip("\n"))
    else:
        rich.console.Console(width=None if sys.stdout.isatty() else _WIDTH).print(result)
        sys.stdout.flush()


def overview() -> str:
    """What `tfaccel --help` prints."""
    width = max(len(command.name) for command in COMMANDS)
    lines = [f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS]
    return "\n".join(
        [
            "Usage: tfaccel COMMAND [arguments] [flags]",
            "",
            *lines,
            "",
            "`tfaccel COMMAND --help` lists a command's flags, `tfaccel --version` the version.",
            "Every command takes --format=table|json|markdown.",
        ]
    )


def command_help(command: Command) -> str:
    """What `tfaccel COMMAND --help` prints: usage, summary, and absl's text on each flag."""
    values = _flags(command)
    modules = [module for module in values.flags_by_module_dict() if module != __name__]
    # absl heads each module's flags by its name, which tells a user nothing.
    lines = [
        line
        for module in [*modules, __name__]
        for line in values.module_help(module).splitlines()
        if line.startswith(" ")
    ]
    usage = f"Usage: tfaccel {command.name} {command.usage}".rstrip()
    return "\n".join([usage, "", command.summary, "", "Flags:", *lines])


def _say(text: str) -> int:
    print(text, flush=True)
    return 0


def _complain(who: str, what: object, status: int) -> int:
    print(f"{who}: {_one_line(what)}", file=sys.stderr)
    return status


def _one_line(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= _MESSAGE_LENGTH else f"{line[:_MESSAGE_LENGTH]}..."


def _reader_left() -> int:
    """Whoever read standard output has had enough (`| head`): no error of ours."""
    # Python flushes once more as it ends, and would complain then.
    # https://docs.python.org/3/library/signal.html#note-on-sigpipe
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_FAILED
