"""Timing steps side by side, and what may be concluded from it.

The clock is always passed in, so that tests use exact numbers and never sleep.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence

import tensorflow as tf

Clock = Callable[[], float]
Step = Callable[[], object]

# Pairs after which the interval is looked at. Six is the smallest number at which
# the range of the sample is a 95 % interval of the median.
LOOKS = (6, 9, 12, 17, 21)
CONFIDENCE = 0.95
# Pairs that a ratio is not believed without.
FEWEST = 3


@dataclasses.dataclass(frozen=True)
class Speedup:
    """How many times faster a candidate is than the baseline.

    Attributes:
        median: the median of the paired ratios, baseline over candidate.
        low, high: the ends of its confidence interval.
        pairs: how many pairs were measured.
    """

    median: float = 1.0
    low: float = 1.0
    high: float = 1.0
    pairs: int = 0

    def __str__(self) -> str:
        return f"{self.median:.2f}x [{self.low:.2f}-{self.high:.2f}]"


def wait_for(outputs: object) -> None:
    """Waits until a step's outputs exist, so that a GPU's queue is not timed as done."""
    for leaf in tf.nest.flatten(outputs):
        if isinstance(leaf, tf.Tensor):
            leaf.numpy()
            break
    if tf.config.list_logical_devices("GPU"):
        # The loss is there before the last update is.
        tf.test.experimental.sync_devices()


def timed(step: Step, clock: Clock) -> float:
    """Seconds that one call of `step` takes, its outputs included."""
    start = clock()
    wait_for(step())
    return clock() - start


def median_interval(
    values: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """The median with an interval that covers it, whatever the distribution.

    The interval is made of two order statistics: the number of values below the
    true median is binomial(n, 1/2). It is the narrowest symmetric pair that
    reaches `confidence`, or the whole range where none does.

    Args:
        values: at least one value.
        confidence: the probability that the interval should cover the median.

    Returns:
        The median, the low end, the high end.

    Source: Conover, Practical Nonparametric Statistics (1999), section 3.2.

    >>> median_interval([3.0, 1.0, 2.0, 5.0, 4.0, 7.0, 6.0])
    (4.0, 1.0, 7.0)
    """
    ordered = sorted(values)
    count = len(ordered)
    ways, below, cut = 1, 0, 0  # of `count` values, to have `rank` below the true median
    for rank in range(count // 2):
        below += ways
        if 2 * below > (1 - confidence) * 2**count:
            break
        cut, ways = rank, ways * (count - rank) // (rank + 1)
    return statistics.median(ordered), ordered[cut], ordered[count - 1 - cut]


def speedup(baseline_seconds: Sequence[float], candidate_seconds: Sequence[float]) -> Speedup:
    """The speedup from times taken in pairs.

    A ratio is made within each pair, so a machine that slows down half way slows
    both sides of a pair and not one side of the comparison.
    """
    ratios = [a / b for a, b in zip(baseline_seconds, candidate_seconds, strict=True)]
    return Speedup(*median_interval(ratios), len(ratios))


def compare_steps(
    baseline: Step,
    candidate: Step,
    clock: Clock,
    deadline: float = math.inf,
    looks: Sequence[int] = LOOKS,
    *,
    fewest: int = FEWEST,
    expected_seconds: float = 0.0,
) -> tuple[list[float], list[float]]:
    """Times two traced steps in pairs whose order alternates.

    Stops at the first number of pairs in `looks` at which the interval excludes
    1.0, at the last of them, or where one more pair, taken to be as long as the longest so
    far, would end after the deadline.

    Args:
        baseline, candidate: the steps.
        clock: seconds.
        deadline: the clock's value at which all should have ended.
        looks: numbers of pairs.
        fewest: pairs that are made whatever the deadline is.
        expected_seconds: what a pair is expected to take before any was made.

    Returns:
        The baseline's and the candidate's seconds, pair by pair.
    """
    baseline_seconds: list[float] = []
    candidate_seconds: list[float] = []
    longest = expected_seconds
    for pair in range(looks[-1]):
        if pair >= fewest and deadline < math.inf and clock() + longest > deadline:
            break
        order = ((baseline, baseline_seconds), (candidate, candidate_seconds))
        for step, seconds in order if pair % 2 == 0 else reversed(order):
            seconds.append(timed(step, clock))
        longest = max(longest, baseline_seconds[-1] + candidate_seconds[-1])
        done = pair + 1
        if done in looks:
            now = speedup(baseline_seconds, candidate_seconds)
            if now.low > 1.0 or now.high < 1.0:
                break
    return baseline_seconds, candidate_seconds
