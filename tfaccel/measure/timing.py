"""Timing steps side by side, and what may be concluded from it.

The clock is always passed in, so that tests use exact numbers and never sleep.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfaccel.measure.units import ratio

Clock = Callable[[], float]
Step = Callable[[], object]

CONFIDENCE = 0.95


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
        return f"{ratio(self.median)} [{self.low:.2f}-{self.high:.2f}]"


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


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median with an interval that covers it, whatever the distribution.

    The interval is made of two order statistics: the number of values below the
    true median is binomial(n, 1/2). It is the narrowest symmetric pair that
    reaches `CONFIDENCE`, or the whole range where none does.

    Args:
        values: at least one value.

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
        if 2 * below > (1 - CONFIDENCE) * 2**count:
            break
        cut, ways = rank, ways * (count - rank) // (rank + 1)
    return statistics.median(ordered), ordered[cut], ordered[count - 1 - cut]


def percentiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """The times that 50, 90 and 99 of 100 calls keep within, as far as so many calls show it.

    Args:
        seconds: at least one time.

    >>> percentiles([0.1] * 9 + [0.5])
    (0.1, 0.1, 0.5)
    """
    ordered = sorted(seconds)
    half, most, nearly_all = (
        ordered[-(-len(ordered) * share // 100) - 1] for share in (50, 90, 99)
    )
    return half, most, nearly_all


def speedup(baseline_seconds: Sequence[float], candidate_seconds: Sequence[float]) -> Speedup:
    """The speedup from times taken in pairs.

    A ratio is made within each pair, so a machine that slows down half way slows
    both sides of a pair and not one side of the comparison.
    """
    ratios = [a / b for a, b in zip(baseline_seconds, candidate_seconds, strict=True)]
    return Speedup(*median_interval(ratios), len(ratios))
