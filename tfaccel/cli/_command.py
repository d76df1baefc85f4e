"""What a command of the command line is, and what its flags take.

No dataclasses: `tfaccel run` would wait for their module as long as for all else here.
"""

import argparse
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol

if TYPE_CHECKING:  # a program under `tfaccel run` need not wait for it
    import rich.console


class UsageError(Exception):
    """The command line is wrong; the message says in one line what is wrong with it."""


class Result(Protocol):
    """What a command found, in the three forms that `--format` can ask for."""

    def __rich__(self) -> "rich.console.RenderableType":
        """For `--format=table`."""

    def to_json(self) -> str:
        """For `--format=json`: one JSON value."""

    def to_markdown(self) -> str:
        """For `--format=markdown`."""


class Handover(NamedTuple):
    """Stands for a result where the process becomes the user's program.

    `start` runs it and gives the exit status. What it raises is the program's own.
    """

    start: Callable[[], int]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raises `UsageError`."""
        raise UsageError(f"{message} (`{self.prog} --help` lists the flags)")


class Command(NamedTuple):
    """What a command of `tfaccel` takes and does."""

    # Defines the command's arguments on the parser that it is handed.
    define: Callable[[argparse.ArgumentParser], None]
    # Takes the parsed arguments. Raises `UsageError` for arguments that are wrong. A result
    # that names a failure (`exit_code` attribute other than 0) makes the command exit so.
    run: Callable[[argparse.Namespace], Result | Handover]


class Listed(NamedTuple):
    """A command as the overview has it; its module is loaded when the command is asked for.

    Most commands need TensorFlow. `run` must not import it, and `--help` need not.
    """

    name: str  # the word after `tfaccel`
    summary: str  # one line that says what it does
    module: str  # whose `COMMAND` it is

    def load(self) -> Command:
        """The command itself."""
        return importlib.import_module(self.module).COMMAND


def comma_list(text: str) -> list[str]:
    """`"a, b"` as `["a", "b"]`; nothing is an empty list."""
    return [word.strip() for word in text.split(",")] if text.strip() else []


def positive_int(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1. Received: {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """A time of 0 or more."""
    found = float(text)
    if not found >= 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more. Received: {text!r}")
    return found
