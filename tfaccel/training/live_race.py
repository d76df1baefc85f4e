"""A race on the steps of the training itself, without repeating or undoing any."""

import math
from collections.abc import Callable
from typing import Any

from tfaccel.measure.racing import FEWEST, Race
from tfaccel.measure.timing import Clock, wait_for
from tfaccel.steps.compiled_step import StepFunction
from tfaccel.training.guarded_step import GuardedStep

# The least seconds of a turn, so that no single step decides it, and the most steps in one.
_LEAST_TURN_SECONDS = 0.02
_MOST_CALLS = 32


class LiveRace:
    """The step that ran so far and a candidate take turns on real batches.

    A turn is some calls of Keras's, timed from the end of the turn before, as the training also
    pays for the input pipeline and for what Keras and callbacks do between steps. A turn that an
    epoch's end breaks off does not count.

    Args:
        present: the step that ran so far.
        candidate: traced, and compared with the original step.
        clock: seconds, the same in all processes.
        steps_per_call: how many steps the candidate runs in a call.
        step_seconds: of the original.
        most_lost_seconds: how much longer the candidate's turns may take in all.
        room: how many calls Keras is sure to make before anybody looks at the model.
        race: what was measured in an earlier fit.

    Attributes:
        race: what was measured so far.
        calls: how many calls a turn has.
        candidate: as given.
    """

    def __init__(
        self,
        present: StepFunction,
        candidate: GuardedStep,
        clock: Clock,
        *,
        steps_per_call: int,
        step_seconds: float,
        most_lost_seconds: float,
        room: Callable[[], int],
        race: Race | None = None,
    ):
        self.race = race or Race()
        self.candidate = candidate
        self.calls = max(steps_per_call, self.calls_of(step_seconds))
        self._present = present
        self._clock = clock
        self._most_lost_seconds = most_lost_seconds
        self._room = room
        self._left = self.calls
        self._turn_begun: float | None = None
        self._last: StepFunction = present
        candidate.room = self._candidate_room

    @staticmethod
    def calls_of(step_seconds: float) -> int:
        """How many calls a turn has at least."""
        calls = math.ceil(_LEAST_TURN_SECONDS / step_seconds) if step_seconds > 0 else 1
        return min(_MOST_CALLS, calls)

    def _candidate_room(self) -> int:
        """How many calls the candidate may run ahead without entering the other side's turn."""
        return min(self._left, self._room())

    @property
    def is_decided(self) -> bool:
        """Whether the winner is clear, the candidate failed, or it has lost enough time."""
        race = self.race
        if race.is_decided or self.candidate.has_failed:
            return True
        return race.pairs >= FEWEST and self._lost_seconds > self._most_lost_seconds

    @property
    def _lost_seconds(self) -> float:
        return sum(self.race.candidate_seconds) - sum(self.race.baseline_seconds)

    def begin_epoch(self) -> None:
        """Begins an epoch; the present turn begins anew."""
        self._turn_begun, self._left = None, self.calls

    def __call__(self, iterator: Any) -> Any:
        """One step of the training."""
        side = self.candidate if self.race.candidate_is_next else self._present
        copying = 0.0 if side is self._last else self._resume(side)
        self._last = side
        if self._turn_begun is None:
            self._turn_begun = self._clock()
        else:
            self._turn_begun += copying
        logs = side(iterator)
        self._left -= 1
        if not self._left:
            wait_for(logs)
            now = self._clock()
            self.race.note(now - self._turn_begun)
            self._turn_begun, self._left = now, self.calls
        return logs

    def _resume(self, side: StepFunction) -> float:
        """Lets a side go on after the other's steps; returns the seconds of keeping the state."""
        start = self._clock()
        if isinstance(side, GuardedStep):
            side.resume()
        return self._clock() - start
