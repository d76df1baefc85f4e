"""What a command of the command line is."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import rich.console
from absl import flags


class UsageError(Exception):
    """The user's words cannot be taken; the message is the one line that says why."""


class Result(Protocol):
    """What a command found, in the three forms that `--format` can ask for."""

    def __rich__(self) -> rich.console.RenderableType:
        """For `--format=table`."""

    def to_json(self) -> str:
        """For `--format=json`: one JSON value."""

    def to_markdown(self) -> str:
        """For `--format=markdown`."""


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of `tfaccel`.

    Attributes:
        name: the word after `tfaccel`.
        usage: what follows it, such as `"MODEL [flags]"`.
        summary: one line that says what it does.
        define: defines the command's flags in the `FlagValues` that it is handed.
        run: is handed the positional arguments and the parsed flags. Raises
            `UsageError` for words that it cannot take. A result that names a
            failure (`exit_code` attribute other than 0) makes the command exit so.
    """

    name: str
    usage: str
    summary: str
    define: Callable[[flags.FlagValues], None]
    run: Callable[[Sequence[str], flags.FlagValues], Result]
