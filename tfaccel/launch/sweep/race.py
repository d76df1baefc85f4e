"""Settings take turns, each turn a process of its own; the fastest goes on to the next factor."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence

from tfaccel.launch.sweep.settings import AS_IT_IS, Factor, Setting

# Of each setting. Settings alternate, so a machine that is busy for a minute slows all of them.
TURNS = 2
# Further ones of a setting that seems to have won, and of what it was raced with: of two equal
# sides one wins two turns each by chance in one of six races, and four turns each in one of 70.
CONFIRMING = 2
# A smaller speedup is no reason to keep a setting.
LEAST_GAIN = 1.02
# A turn fails after this many times what a turn without the setting took, and so many seconds more.
_PATIENCE, _PATIENCE_SECONDS = 3.0, 10.0

# Runs the program's first steps with a setting, within so many seconds; gives seconds of a step.
Run = Callable[[Setting, float], float]


class TurnError(Exception):
    """The program's steps could not be timed; the message says why."""


@dataclasses.dataclass(frozen=True)
class Tried:
    """What one setting gave.

    Attributes:
        setting: the variables, with those that had won before.
        step_seconds: the median step of each turn; none where it failed.
        against: the median of what it was raced with; None for that one itself, and a failure.
        verdict: what came of it.
    """

    setting: Setting
    step_seconds: tuple[float, ...]
    against: float | None
    verdict: str

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.step_seconds)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        best: what won.
        tried: all that was tried, in order; the rows of a factor begin with what had won before.
        left_out: names of settings of which nothing is known, mostly for want of time.
    """

    best: Setting
    tried: tuple[Tried, ...]
    left_out: tuple[str, ...] = ()


def race(
    factors: Iterable[Factor], run: Run, *, clock: Callable[[], float], max_seconds: float
) -> Sweep:
    """Goes through the factors one at a time; what wins one goes along in the next.

    So settings that only help together are not found, and those that don't go together are not
    kept together.

    Args:
        factors: what to try; the later ones may go by what the turns of the earlier ones told.
        run: times the first steps under a setting; raises TurnError.
        clock: gives seconds.
        max_seconds: what all of it may take; a factor that would not end in time is left out.

    Raises:
        TurnError: the program as it is could not be timed.
    """
    start, best = clock(), AS_IT_IS
    tried: list[Tried] = []
    left_out: list[str] = []
    limit = max_seconds
    turn_seconds: float | None = None
    for factor in factors:
        sides = [best, *(best.with_also(setting) for setting in factor)]
        if turn_seconds is not None:
            needed = (TURNS * len(sides) + CONFIRMING * 2) * turn_seconds
            if clock() - start + needed > max_seconds:
                left_out += [setting.name for setting in factor]
                continue
        turns = _Turns(sides, run, clock, limit)
        try:
            turns.take()
        except TurnError:
            if not tried:
                raise
            left_out += [setting.name for setting in factor]
            continue  # what had won before fails now and then: no more is known of this factor
        turn_seconds = turns.slowest_seconds
        limit = _PATIENCE * turn_seconds + _PATIENCE_SECONDS
        best, rows = turns.judged()
        tried += rows
    return Sweep(best, tuple(tried), tuple(left_out))


class _Turns:
    """One factor's sides in turns; the first is what had won before."""

    def __init__(
        self, sides: Sequence[Setting], run: Run, clock: Callable[[], float], limit: float
    ):
        self._sides = sides
        self._run = run
        self._clock = clock
        self._limit = limit
        self._times: list[list[float]] = [[] for _ in sides]
        self._failed: dict[int, str] = {}
        self.slowest_seconds = 0.0  # of a turn of the first side

    def take(self) -> None:
        """All turns."""
        for _ in range(TURNS):
            for index in range(len(self._sides)):
                self._take_one(index)
        leader = self._leader()
        while leader and len(self._times[leader]) == TURNS:
            for _ in range(CONFIRMING):
                self._take_one(0)
                self._take_one(leader)
            leader = self._leader()

    def _leader(self) -> int:
        """The fastest side of those that are faster than the first; the first where none is."""
        before = self._times[0]
        faster = [
            index
            for index, times in enumerate(self._times)
            if index and index not in self._failed and _is_faster(times, before)
        ]
        return min(faster, key=lambda i: statistics.median(self._times[i]), default=0)

    def _take_one(self, index: int) -> None:
        if index in self._failed:
            return
        start = self._clock()
        try:
            self._times[index].append(self._run(self._sides[index], self._limit))
        except TurnError as error:
            if not index:
                raise
            self._failed[index] = str(error)
        if not index:
            self.slowest_seconds = max(self.slowest_seconds, self._clock() - start)
            self._limit = min(self._limit, _PATIENCE * self.slowest_seconds + _PATIENCE_SECONDS)

    def judged(self) -> tuple[Setting, list[Tried]]:
        """The setting that goes on to the next factor, and the table's rows."""
        before = self._times[0]
        against, winner = statistics.median(before), self._leader()
        rows = []
        for index, (side, times) in enumerate(zip(self._sides, self._times, strict=True)):
            if index in self._failed:
                rows.append(Tried(side, (), None, self._failed[index]))
                continue
            verdict = "kept" if index == winner else _verdict(times, before) if index else ""
            rows.append(Tried(side, tuple(times), against if index else None, verdict))
        return self._sides[winner], rows


def _is_faster(times: Sequence[float], before: Sequence[float]) -> bool:
    """Whether each of its turns was faster than each of the other's, and by enough."""
    gain = statistics.median(before) / statistics.median(times)
    return max(times) < min(before) and gain >= LEAST_GAIN


def _verdict(times: Sequence[float], before: Sequence[float]) -> str:
    if _is_faster(times, before):
        return "faster, but not the fastest"
    return "slower" if min(times) > max(before) else "no clear difference"
