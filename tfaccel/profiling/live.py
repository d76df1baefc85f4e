"""The user's own step among accelerated ones: a comparison throughout the training."""

import dataclasses
import statistics
from collections import deque
from typing import Literal

from tfaccel.measure.timing import Speedup, speedup

Every = int | Literal["auto"] | None
# The share of the time so far that "auto" may lose by slower own steps, and the share of the whole
# training that it may take to trace the own step, where that never ran before.
SHARE = 0.01
TRACE_SHARE = 0.005
# The assumed cost of an own step, in accelerated steps, before one was timed.
_GUESSED_RATIO = 2.0
# Accelerated steps whose median is the usual one.
_RECENT = 31


@dataclasses.dataclass(frozen=True)
class Pair:
    """One of the user's own steps, and accelerated steps right beside it."""

    step: int  # the own step's number, from 0
    baseline_seconds: float  # what it took
    plan_seconds: float  # the mean of the accelerated steps just before and just after it


class LiveComparison:
    """Says when to run the user's own step, and makes pairs of what was timed.

    Both are valid training steps, so a comparison costs only the time by which the own step
    is slower. A pair counts only once the epoch has gone on past it, as the last batch of an
    epoch may be smaller.

    Args:
        every: accelerated steps between two own ones; `"auto"` keeps their cost
            below `SHARE` of the time so far, and runs none at all where tracing it would
            cost more than `TRACE_SHARE` of the training; None for no comparison.
    """

    def __init__(self, every: Every):
        self.pairs: list[Pair] = []  # those that count, in order
        self.cost_seconds = 0.0  # how much longer own steps took than accelerated ones
        self.trace_seconds = 0.0  # what tracing the own step cost
        self._every = every
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._steps_since = 0
        self._before: float | None = None
        self._open: tuple[int, float, float] | None = None
        self._complete: Pair | None = None

    @property
    def speedup(self) -> Speedup | None:
        """The median ratio with its interval; None before the first pair counts."""
        if not self.pairs:
            return None
        return speedup(
            [pair.baseline_seconds for pair in self.pairs],
            [pair.plan_seconds for pair in self.pairs],
        )

    def is_due(
        self,
        elapsed_seconds: float,
        trace_seconds: float = 0.0,
        expected_seconds: float | None = None,
    ) -> bool:
        """Whether the next step should be the user's own.

        Args:
            elapsed_seconds: the time of all steps so far.
            trace_seconds: that tracing the own step would cost, where it never ran.
            expected_seconds: the time of the whole training; None where unknown.
        """
        if self._every is None or self._before is None or self._open or self._complete:
            return False
        if self._every != "auto":
            return self._steps_since >= self._every
        if trace_seconds > TRACE_SHARE * max(elapsed_seconds, expected_seconds or 0.0):
            return False
        return self.cost_seconds + self._expected_cost() <= SHARE * elapsed_seconds

    def _expected_cost(self) -> float:
        usual = statistics.median(self._recent)
        gain = self.speedup
        return usual * max(0.0, (gain.median if gain else _GUESSED_RATIO) - 1.0)

    def note_plan(self, seconds: float) -> Pair | None:
        """Notes an accelerated step; returns the pair that counts from now on, if any."""
        counted = self._count()
        self._recent.append(seconds)
        self._steps_since += 1
        if self._open is not None:
            step, own_seconds, before = self._open
            self._complete = Pair(step, own_seconds, (before + seconds) / 2)
            self._open = None
        self._before = seconds
        return counted

    def note_own(self, step: int, seconds: float) -> Pair | None:
        """Notes the own step that was due; returns the pair that counts from now on, if any."""
        counted = self._count()
        self._steps_since = 0
        self.cost_seconds += max(0.0, seconds - statistics.median(self._recent))
        self._open = None if self._before is None else (step, seconds, self._before)
        self._before = None
        return counted

    def note_irregular(self, own_cost_seconds: float = 0.0) -> None:
        """Notes a trace or the end of an epoch: steps beside it can't be compared.

        Args:
            own_cost_seconds: of tracing the user's own step, if that was traced.
        """
        self.trace_seconds += own_cost_seconds
        self._before = self._open = self._complete = None

    def _count(self) -> Pair | None:
        pair, self._complete = self._complete, None
        if pair is not None:
            self.pairs.append(pair)
        return pair
