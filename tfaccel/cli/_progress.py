"""How far a command is, on standard error: a bar in a terminal, plain lines elsewhere."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TextIO

import rich.console
import rich.progress
import rich.progress_bar
import rich.text

from tfaccel.autotune.trial import Trial


class Progress:
    """Tells what is being done. Made by `progress`."""

    def __init__(self, console: rich.console.Console, bar: rich.progress.Progress | None):
        self._console = console
        self._bar = bar
        self._task: rich.progress.TaskID | None = None

    def stage(self, text: str, seconds: float | None = None) -> None:
        """A stage begins.

        Args:
            text: what it does.
            seconds: how long it takes at most, where that is known.
        """
        if self._bar is None:
            self._say(text if seconds is None else f"{text} (at most {seconds:.0f} s)")
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(text, total=seconds)

    def trial(self, trial: Trial) -> None:
        """A trial has ended."""
        self._say(said(trial))

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress(file: TextIO | None = None) -> Iterator[Progress]:
    """Progress for the length of a `with` block.

    Args:
        file: where to; None for standard error.
    """
    console = rich.console.Console(file=file or sys.stderr)
    if not console.is_terminal:
        yield Progress(console, None)
        return
    bar = rich.progress.Progress(
        rich.progress.SpinnerColumn(),
        rich.progress.TextColumn("{task.description}", markup=False),
        _TimeBar(),
        rich.progress.TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
    )
    with bar:
        yield Progress(console, bar)


class _TimeBar(rich.progress.ProgressColumn):
    """The share of a stage's seconds that has gone by."""

    def render(self, task: rich.progress.Task) -> rich.progress_bar.ProgressBar | rich.text.Text:
        """A bar; nothing for a stage of unknown length."""
        if task.total is None:
            return rich.text.Text()
        gone = min(task.elapsed or 0.0, task.total)
        return rich.progress_bar.ProgressBar(total=task.total, completed=gone, width=30)


def said(trial: Trial) -> str:
    """A trial in one line.

    >>> from tfaccel import Outcome, Plan, Speedup
    >>> said(Trial(Plan(), Outcome.FASTER, speedup=Speedup(1.5, 1.4, 1.6)))
    'baseline: faster, 1.50x [1.40-1.60]'
    """
    gain = "" if trial.speedup is None else f", {trial.speedup}"
    reason = f" ({trial.reason})" if trial.reason else ""
    return f"{trial.plan}: {trial.outcome.value}{gain}{reason}"
