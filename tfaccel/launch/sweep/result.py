"""A sweep's table, in the forms in which commands print."""

import dataclasses
import json
import shlex

import rich.console
import rich.text

from tfaccel.launch.sweep.race import Sweep, Tried
from tfaccel.measure.tables import markdown_table, terminal_table
from tfaccel.measure.units import milliseconds, ratio

_NUMBERS = ("step", "speedup")
_HEADINGS = ("surroundings", "step", "turns", "speedup", "verdict")


@dataclasses.dataclass(frozen=True)
class Swept:
    """What a sweep found, and where it is kept.

    Attributes:
        sweep: the findings.
        kept: the file; empty where it can't be written.
    """

    sweep: Sweep
    kept: str

    def __rich__(self) -> rich.console.Group:
        table = terminal_table(_HEADINGS, self._rows(), numbers=_NUMBERS)
        return rich.console.Group(table, rich.text.Text(self._said(), overflow="fold"))

    def to_markdown(self) -> str:
        """The table and what it comes to."""
        return f"{markdown_table(_HEADINGS, self._rows(), numbers=_NUMBERS)}\n\n{self._said()}\n"

    def to_json(self) -> str:
        """What won, what was tried with the seconds of each turn, what was left out, the file."""
        tried = [
            {
                "name": tried.setting.name,
                "environ": dict(tried.setting.environ),
                "step_seconds": list(tried.step_seconds),
                "verdict": tried.verdict,
            }
            for tried in self.sweep.tried
        ]
        found = {"environ": dict(self.sweep.best.environ), "tried": tried}
        return json.dumps(found | {"left_out": list(self.sweep.left_out), "kept": self.kept})

    def _rows(self) -> list[tuple[str, ...]]:
        return [_row(tried) for tried in self.sweep.tried]

    def _said(self) -> str:
        best = self.sweep.best.environ
        if not self.sweep.tried and not self.sweep.left_out:
            return "There is nothing to try: the environment sets all that a sweep would."
        variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in best.items())
        said = f"Fastest: {variables}." if best else "Nothing was faster than the program as it is."
        if self.sweep.left_out:
            said += f" Not measured for want of time: {', '.join(self.sweep.left_out)}."
        if self.kept:
            return f"{said} `tfaccel run` uses it for this program from now on ({self.kept})."
        return (
            f"{said} It could not be kept: set TFACCEL_CACHE_DIR to a folder that can be written."
        )


def _row(tried: Tried) -> tuple[str, ...]:
    if not tried.step_seconds:
        return tried.setting.name, "", "", "", tried.verdict
    turns = " ".join(milliseconds(seconds) for seconds in tried.step_seconds)
    gain = "" if tried.against is None else ratio(tried.against / tried.median)
    return tried.setting.name, milliseconds(tried.median), turns, gain, tried.verdict
