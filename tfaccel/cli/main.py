"""The way in from the command line.

`tfaccel run` without options has nothing to parse, and goes the short way: a program that trains
nothing should not wait for the parser, which takes as long to load as Python takes to start.
"""

import importlib
import sys
from collections.abc import Sequence

from tfaccel.cli._status import EXIT_USAGE
from tfaccel.launch.program import NoProgramError, Program
from tfaccel.launch.start import Options, start


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command, or shows help.

    Args:
        arguments: the words after `tfaccel`; None for those of this process.

    Returns:
        The exit status: 0; 1 where a command failed, or found a problem; 2 for a wrong command
        line; 130 after Ctrl-C. A program under `tfaccel run` has its own exit status, and what
        it raises is raised.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    program = without_options(words)
    if program is None:
        status: int = importlib.import_module("tfaccel.cli.commands").command(words)
        return status
    try:
        program.check()
    except NoProgramError as error:
        print(f"tfaccel run: {error}", file=sys.stderr)
        return EXIT_USAGE
    return start(program, Options())


def without_options(words: Sequence[str]) -> Program | None:
    """The program of `run script.py ...` and `run -m module ...`; None for all other words."""
    if words[:1] != ["run"]:
        return None
    is_module = words[1:2] == ["-m"]
    name, *rest = words[1 + is_module :] or [""]
    return Program(name, tuple(rest), is_module) if name and name[0] != "-" else None
