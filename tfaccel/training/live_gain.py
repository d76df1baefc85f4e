"""The speedup of a plan while it runs: a short race from time to time."""

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from tfaccel.measure.racing import Race
from tfaccel.measure.timing import Clock, Speedup, speedup
from tfaccel.steps.compiled_step import StepFunction
from tfaccel.training.guarded_step import GuardedStep
from tfaccel.training.live_race import LiveRace

# The share of the time that comparing may cost.
LIVE_SHARE = 0.01
# Pairs of one comparison, so that each side begins once.
_PAIRS = 2
# Pairs whose median is the present gain: those of the latest comparisons.
_LATEST = 12


class LiveGain:
    """Runs a plan's step, and compares it with the original one from time to time.

    Both are valid steps of the training: a comparison costs only the time lost by the original.

    Args:
        own: the original step, traced already.
        plan: the plan's step.
        clock: seconds, the same in all processes.
        race: that the plan has won; None for a plan from the cache.
        steps_per_call: how many steps the plan runs in a call.
        step_seconds: of the original.
        gain: the plan's speedup in that race.
        room: how many calls Keras is sure to make before anybody looks at the model.

    Attributes:
        race: the present comparison; None between two.
    """

    def __init__(
        self,
        own: StepFunction,
        plan: GuardedStep,
        clock: Clock,
        *,
        race: Race | None,
        steps_per_call: int,
        step_seconds: float,
        gain: float,
        room: Callable[[], int],
    ):
        self.race: LiveRace | None = None
        self._own, self._plan, self._clock, self._room = own, plan, clock, room
        self._steps_per_call, self._step_seconds = steps_per_call, step_seconds
        self._calls_since = 0
        self._pairs: deque[tuple[float, float]] = deque(maxlen=_LATEST)
        if race is not None:
            self._take(race)
        self._pause = self._pause_calls(max(gain, 1.0))

    def __call__(self, iterator: Any) -> Any:
        """One step of the training."""
        if self.race is None and self._is_due:
            self.race = self._begun()
        if self.race is None:
            self._calls_since += 1
            return self._plan(iterator)
        logs = self.race(iterator)
        if self.race is not None and self.race.race.pairs >= _PAIRS:
            self._end(self.race)
        return logs

    @property
    def gain(self) -> Speedup | None:
        """The latest speedup; None before the first pair."""
        return speedup(*zip(*self._pairs, strict=True)) if self._pairs else None

    def begin_epoch(self) -> None:
        """An epoch begins."""
        if self.race is not None:
            self.race.begin_epoch()

    @property
    def _is_due(self) -> bool:
        return self._calls_since >= self._pause and not self._plan.function.ahead

    def _begun(self) -> LiveRace:
        return LiveRace(
            self._own,
            self._plan,
            self._clock,
            steps_per_call=self._steps_per_call,
            step_seconds=self._step_seconds,
            most_lost_seconds=math.inf,
            room=self._room,
        )

    def _end(self, race: LiveRace) -> None:
        self.race, self._calls_since = None, 0
        self._plan.room = self._room
        self._take(race.race)
        gain = self.gain
        self._pause = self._pause_calls(1.0 if gain is None else gain.median)

    def _take(self, race: Race) -> None:
        count = race.pairs
        own, plan = race.baseline_seconds[:count], race.candidate_seconds[:count]
        self._pairs.extend(zip(own, plan, strict=True))

    def _pause_calls(self, gain: float) -> int:
        """Calls until the next comparison, so that all of them cost no more than their share.

        A step of the original costs `gain - 1` of the plan's steps; keeping the state for the
        guard, twice in a comparison, is taken to cost one.
        """
        calls = max(self._steps_per_call, LiveRace.calls_of(self._step_seconds))
        return math.ceil(_PAIRS * calls * (max(0.0, gain - 1.0) + 1.0) / LIVE_SHARE)
