"""The report of a fit: when it is shown, and what is added to its tuning time."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

from tfaccel.autotune.report import Report
from tfaccel.training.step_dispatcher import StepDispatcher


class Announcer:
    """Keeps the report where all callbacks of the fit find it, and shows it once.

    Args:
        dispatcher: holds the report.
        on_report: called with the report when the choice is made.
    """

    def __init__(self, dispatcher: StepDispatcher, on_report: Callable[[Report], None]):
        self._dispatcher = dispatcher
        self._on_report = on_report
        self._is_held_back = False

    @property
    def report(self) -> Report | None:
        """What tuning found; None before the choice."""
        return self._dispatcher.report

    @report.setter
    def report(self, report: Report | None) -> None:
        self._dispatcher.report = report

    def announce(self, report: Report) -> None:
        """Shows the report of the choice that was made."""
        self.report = report
        if not self._is_held_back:
            self._on_report(report)

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """A block at whose end its report is shown, as its cost is known only then."""
        self._is_held_back = True
        try:
            yield
        finally:
            self._is_held_back = False
            if self.report is not None:
                self._on_report(self.report)

    def set_tuning_seconds(self, seconds: float) -> None:
        """Sets the seconds that the training has waited for so far."""
        if self.report is not None:
            self.report = dataclasses.replace(self.report, tuning_seconds=max(0.0, seconds))

    def add_wait(self, seconds: float) -> None:
        """Adds seconds for which the training waited because of trials."""
        if self.report is not None and seconds > 0:
            self.set_tuning_seconds(self.report.tuning_seconds + seconds)
