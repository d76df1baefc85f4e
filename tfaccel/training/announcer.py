"""The report of a fit: when it is told, and what is added to its tuning time."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

from tfaccel.autotune.report import Report
from tfaccel.training.step_dispatcher import StepDispatcher


class Announcer:
    """Keeps the report where all callbacks of the fit find it, and tells it once.

    Args:
        dispatcher: holds the report.
        on_report: told when it is decided how the training goes on.
    """

    def __init__(self, dispatcher: StepDispatcher, on_report: Callable[[Report], None]):
        self._dispatcher = dispatcher
        self._on_report = on_report
        self._is_held_back = False

    @property
    def report(self) -> Report | None:
        """What tuning found; None before."""
        return self._dispatcher.report

    @report.setter
    def report(self, report: Report | None) -> None:
        self._dispatcher.report = report

    def announce(self, report: Report) -> None:
        """It is decided how the training goes on."""
        self.report = report
        if not self._is_held_back:
            self._on_report(report)

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """What is announced in this block is told at its end, when its cost is known."""
        self._is_held_back = True
        try:
            yield
        finally:
            self._is_held_back = False
            if self.report is not None:
                self._on_report(self.report)

    def set_tuning_seconds(self, seconds: float) -> None:
        """All that the training waited for until now."""
        if self.report is not None:
            self.report = dataclasses.replace(self.report, tuning_seconds=max(0.0, seconds))

    def add_wait(self, seconds: float) -> None:
        """The training waited once more on account of trials."""
        if self.report is not None and seconds > 0:
            self.set_tuning_seconds(self.report.tuning_seconds + seconds)
