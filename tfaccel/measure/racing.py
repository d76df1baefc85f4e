"""The race of two sides: whose turn it is, when it is decided, and what follows from it.

There is one rule for all that is timed against something else. Two sides run in pairs whose
order alternates. After some numbers of pairs the interval of their ratio is looked at, and the
race ends where it excludes 1. One that is clearly slower ends sooner, and no pair is begun that
would end after the deadline. `race` runs steps that can be repeated; a `Race` is told what was
measured, for steps that are run anyway, such as those of a validation.
"""

import math
from collections.abc import Callable, Sequence

from tfaccel.measure import timing
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Clock, Speedup, Step

# Pairs after which the interval is looked at. Six is the smallest number at which
# the range of the sample is a 95 % interval of the median.
LOOKS = (6, 9, 12, 17, 21)
# Pairs that a ratio is not believed without.
FEWEST = 3
# A candidate whose fastest run is this much slower than the baseline's slowest is not timed
# any further.
CLEARLY_SLOWER = 1.5


class Race:
    """A race that goes on elsewhere, and is told each time.

    Args:
        looks: numbers of pairs at which it may be decided; the last ends it.
        expected_seconds: what a pair is expected to take before any was made.

    Attributes:
        baseline_seconds, candidate_seconds: what was noted, pair by pair.

    >>> race = Race()
    >>> while not race.is_decided:
    ...     race.note(0.1 if race.candidate_is_next else 0.2)
    >>> race.pairs, race.gain.median
    (6, 2.0)
    """

    def __init__(self, looks: Sequence[int] = LOOKS, expected_seconds: float = 0.0):
        self.baseline_seconds: list[float] = []
        self.candidate_seconds: list[float] = []
        self._looks = looks
        self._longest = expected_seconds

    @property
    def pairs(self) -> int:
        """How many pairs are whole."""
        return min(len(self.baseline_seconds), len(self.candidate_seconds))

    @property
    def candidate_is_next(self) -> bool:
        """Whose turn it is: the baseline's first, then the candidate's twice, and so on."""
        lead = len(self.baseline_seconds) - len(self.candidate_seconds)
        return lead > 0 or (lead == 0 and self.pairs % 2 == 1)

    def note(self, seconds: float) -> None:
        """Takes down the time of the side whose turn it was."""
        side = self.candidate_seconds if self.candidate_is_next else self.baseline_seconds
        side.append(seconds)
        if not self._is_half:
            pair = self.baseline_seconds[-1] + self.candidate_seconds[-1]
            self._longest = max(self._longest, pair)

    @property
    def gain(self) -> Speedup:
        """The speedup from the whole pairs, of which there is one at least."""
        count = self.pairs
        return timing.speedup(self.baseline_seconds[:count], self.candidate_seconds[:count])

    @property
    def is_clearly_slower(self) -> bool:
        """Whether the candidate loses by so much that nothing else need be known."""
        if self.pairs < FEWEST:
            return False
        return min(self.candidate_seconds) > CLEARLY_SLOWER * max(self.baseline_seconds)

    @property
    def is_decided(self) -> bool:
        """Whether no pair more is needed."""
        if self._is_half:
            return False
        if self.pairs >= self._looks[-1] or self.is_clearly_slower:
            return True
        return self.pairs in self._looks and not self.gain.low <= 1.0 <= self.gain.high

    def fits(self, clock: Clock, deadline: float) -> bool:
        """Whether one more pair, taken to be as long as the longest so far, ends in time."""
        return deadline == math.inf or clock() + self._longest <= deadline

    @property
    def _is_half(self) -> bool:
        return len(self.baseline_seconds) != len(self.candidate_seconds)


def race(
    baseline: Step,
    candidate: Step,
    clock: Clock,
    deadline: float = math.inf,
    *,
    fewest: int = FEWEST,
    expected_seconds: float = 0.0,
) -> Race:
    """Times two steps that were traced and can be repeated.

    Args:
        baseline, candidate: the steps.
        clock, deadline: seconds, and when all should have ended.
        fewest: pairs that are made whatever the deadline is.
        expected_seconds: what a pair is expected to take before any was made.

    Returns:
        The race, as far as it came.
    """
    found = Race(LOOKS, expected_seconds)
    while not found.is_decided:
        if found.pairs >= fewest and not found.fits(clock, deadline):
            break
        for _ in range(2):
            found.note(timing.timed(candidate if found.candidate_is_next else baseline, clock))
    return found


def first_look(
    usual_seconds: float,
    baseline_seconds: Callable[[], float],
    candidate_seconds: Callable[[], float],
    clock: Clock,
    deadline: float = math.inf,
) -> tuple[float, float]:
    """What the two sides take, by as few runs as show whether the candidate is clearly slower.

    Both get a second chance where it seems so: the machine may have been busy for a moment.

    Args:
        usual_seconds: what the baseline took so far; 0 where that is not known.
        baseline_seconds, candidate_seconds: each runs its side, and tells what that took.
        clock, deadline: seconds, and when all should have ended.

    Returns:
        The baseline's slowest and the candidate's fastest; `seems_hopeless` says what follows.
    """
    usual, first = usual_seconds, candidate_seconds()
    if seems_hopeless(usual, first) and clock() + first + usual < deadline:
        usual = max(usual, baseline_seconds())
        first = min(first, candidate_seconds())
    return usual, first


def seems_hopeless(usual_seconds: float, first_seconds: float) -> bool:
    """Whether a candidate's first runs are so slow that no race is begun."""
    return usual_seconds > 0 and first_seconds > CLEARLY_SLOWER * usual_seconds


def verdict(gain: Speedup, worthwhile: float, than: str = "the baseline") -> tuple[Outcome, str]:
    """FASTER or SLOWER, and why not faster in a clause.

    Args:
        gain: what was measured.
        worthwhile: a gain below this is not worth another set of roundings.
        than: what to call the baseline.

    >>> verdict(Speedup(1.01, 1.005, 1.02, 21), 1.02)
    (<Outcome.SLOWER: 'slower'>, 'a gain below 2% is not worth it')
    """
    if gain.high < 1.0:
        return Outcome.SLOWER, f"slower than {than}"
    if gain.low <= 1.0:
        return Outcome.SLOWER, "not faster beyond the spread"
    if gain.median < worthwhile:
        return Outcome.SLOWER, f"a gain below {worthwhile - 1:.0%} is not worth it"
    return Outcome.FASTER, ""
