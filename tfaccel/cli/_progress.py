"""A command's progress on standard error: one changing line in a terminal, lines elsewhere."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TextIO

import rich.console
import rich.status
from rich.markup import escape

from tfaccel.autotune.trial import Trial


class Progress:
    """Tells what is being done. Made by `progress`."""

    def __init__(self, console: rich.console.Console, status: rich.status.Status | None):
        self._console = console
        self._status = status

    def stage(self, text: str, seconds: float | None = None) -> None:
        """Begins a stage that takes at most so many seconds; None where that is unknown."""
        said = text if seconds is None else f"{text} (at most {seconds:.0f} s)"
        if self._status is None:
            self._say(said)
        else:
            self._status.update(escape(said))

    def trial(self, trial: Trial) -> None:
        """A trial has ended."""
        gain = "" if trial.speedup is None else f", {trial.speedup}"
        reason = f" ({trial.reason})" if trial.reason else ""
        self._say(f"{trial.plan}: {trial.outcome.value}{gain}{reason}")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress(file: TextIO | None = None) -> Iterator[Progress]:
    """Progress for the length of a `with` block, on standard error unless `file` is given."""
    console = rich.console.Console(file=file or sys.stderr)
    if not console.is_terminal:
        yield Progress(console, None)
        return
    with console.status("") as status:
        yield Progress(console, status)
