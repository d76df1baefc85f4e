"""The closing table of `tfaccel run`: a row for each kind of fit."""

import dataclasses
import statistics
from collections.abc import Sequence

import rich.console
import rich.text

from tfaccel.measure.tables import terminal_table
from tfaccel.measure.units import ratio

_NUMBERS = ("fits", "steps", "speedup", "tuning")
_HEADINGS = ("model", "fits", "steps", "plan", "speedup", "tuning")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """What became of one fit.

    Attributes:
        model: the model's class.
        parameters: the model's size; None where it is not known.
        steps: training steps; None where they are not known.
        plan: the plan that ran last.
        speedup: of a step, as measured in the fit; None where it is not known.
        tuning_seconds: what was spent on the choice.
        note: why the plan is the model's own step.
        raised: the name of the exception that ended it; empty for none.
    """

    model: str
    parameters: int | None
    steps: int | None
    plan: str
    speedup: float | None
    tuning_seconds: float
    note: str = ""
    raised: str = ""

    @property
    def kind(self) -> tuple[object, ...]:
        """Fits of one kind share a row."""
        return self.model, self.parameters, self.plan, self.raised


def rows(fits: Sequence[Fit]) -> list[tuple[str, ...]]:
    """The table's cells: a row for each kind, in the order of their first fits."""
    kinds: dict[object, list[Fit]] = {}
    for fit in fits:
        kinds.setdefault(fit.kind, []).append(fit)
    return [_row(alike) for alike in kinds.values()]


def _row(alike: Sequence[Fit]) -> tuple[str, ...]:
    first = alike[0]
    size = "" if first.parameters is None else f", {first.parameters:,} parameters"
    steps = [fit.steps for fit in alike]
    known = sum(count for count in steps if count is not None)
    seconds = sum(fit.tuning_seconds for fit in alike)
    return (
        f"{first.model}{size}" + (f" ({first.raised})" if first.raised else ""),
        str(len(alike)),
        "" if None in steps else f"{known:,}",
        first.plan,
        _speedup([fit.speedup for fit in alike if fit.speedup is not None]),
        f"{seconds:.1f} s",
    )


def _speedup(known: Sequence[float]) -> str:
    """One speedup, or the median of several with the least and the most."""
    if not known:
        return ""
    middle, least, most = ratio(statistics.median(known)), min(known), max(known)
    return middle if len(known) == 1 else f"{middle} [{least:.2f}-{most:.2f}]"


def closing(fits: Sequence[Fit], notes: Sequence[str]) -> rich.console.Group:
    """The table, why fits were left as they are, and the notes.

    Args:
        fits: in the order in which they ended.
        notes: sentences about the whole run.
    """
    table = [terminal_table(_HEADINGS, rows(fits), numbers=_NUMBERS)] if fits else []
    # The last fit of each kind knows most.
    last = {fit.kind: fit.note for fit in fits}
    reasons = dict.fromkeys(note for note in last.values() if note)
    lines = [rich.text.Text(f"tfaccel: {said}", overflow="fold") for said in (*reasons, *notes)]
    return rich.console.Group(*table, *lines)
