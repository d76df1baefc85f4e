"""What a step of several workers costs: its parts, and a model of them for more workers."""

import dataclasses
import itertools
import statistics
from collections.abc import Sequence

import numpy as np

_BITS = 8
_GIGA = 1e9


@dataclasses.dataclass(frozen=True)
class Parts:
    """Where the seconds of a step go: they add up to the step, as long as that takes longest."""

    compute: float  # of a worker alone on its share of a batch, on average
    waiting: float  # for the slowest worker, on average
    all_reduce: float  # the rest of the step: the part that computing does not hide


def parts(step_seconds: float, alone: Sequence[Sequence[float]]) -> Parts:
    """Divides the time of a step.

    Args:
        step_seconds: of all workers together.
        alone: for each worker the seconds of steps that it took by itself, while the others did the
            same. All began each step at the same time, so its longest time is the slowest worker's.

    >>> parts(2.0, [[1.0, 1.0], [1.5, 1.5]])
    Parts(compute=1.25, waiting=0.25, all_reduce=0.5)
    """
    by_step = list(zip(*alone, strict=True))
    compute = statistics.median(map(statistics.fmean, by_step))
    last = statistics.median(map(max, by_step))
    return Parts(compute, last - compute, max(0.0, step_seconds - last))


@dataclasses.dataclass(frozen=True)
class RingCost:
    """The seconds of summing gradients around a ring of n workers.

    `2 (n-1)/n * bytes / bandwidth + 2 (n-1) * latency`

    Source: Thakur, Rabenseifner, Gropp, Optimization of Collective Communication Operations in
    MPICH (2005), https://doi.org/10.1177/1094342005051521.
    """

    gradient_bytes: int
    seconds_per_byte: float
    latency_seconds: float  # of each of the 2 (n-1) messages that wait for one another
    residual_seconds: float = 0.0  # the root mean square error of the fit
    points: int = 0  # how many numbers of workers it was fitted to

    def seconds(self, workers: int, gigabits_per_second: float = float("inf")) -> float:
        """Of an all-reduce of so many workers.

        Args:
            workers: 1 or more.
            gigabits_per_second: of each worker's link, whose time is added to the measured time,
                in which the link costs nothing.
        """
        sent, messages = _ring(workers)
        per_byte = self.seconds_per_byte + _BITS / (gigabits_per_second * _GIGA)
        return sent * self.gradient_bytes * per_byte + messages * self.latency_seconds


def fitted(
    workers: Sequence[int], all_reduce_seconds: Sequence[float], gradient_bytes: int
) -> RingCost:
    """The ring whose bandwidth and latency, neither negative, fit the measured seconds best.

    Args:
        workers: how many there were.
        all_reduce_seconds: of each of these numbers of workers.
        gradient_bytes: of one worker.

    Raises:
        ValueError: fewer than two numbers of workers above 1, or no gradients.

    >>> cost = fitted([1, 2, 4], [0.0, 1.2, 2.1], 100)
    >>> round(cost.seconds_per_byte, 9), round(cost.latency_seconds, 9)
    (0.01, 0.1)
    """
    several = sorted({n for n in workers if n > 1})
    if len(several) < 2:
        raise ValueError(
            "a bandwidth and a latency need all-reduces of two numbers of workers, at least, above "
            f"1. Received: {', '.join(map(str, workers)) or 'none'}"
        )
    if gradient_bytes <= 0:
        raise ValueError(f"gradient_bytes must be positive. Received: {gradient_bytes!r}")
    rings = [(_ring(n), seconds) for n, seconds in zip(workers, all_reduce_seconds, strict=True)]
    used = [(ring, seconds) for ring, seconds in rings if ring[1]]
    matrix = np.array([[sent * gradient_bytes, messages] for (sent, messages), _ in used])
    (per_byte, latency), residual = nonnegative(matrix, np.array([s for _, s in used]))
    return RingCost(gradient_bytes, per_byte, latency, residual, len(several))


def nonnegative(matrix: np.ndarray, values: np.ndarray) -> tuple[list[float], float]:
    """The least squares of a few unknowns that may not be negative, and the residual.

    In the best solution without negative unknowns some may be zero: all choices of these are
    tried. The residual is the root of the mean square.
    """
    scale = np.linalg.norm(matrix, axis=0)
    columns = range(matrix.shape[1])
    best, least = [0.0 for _ in columns], float(np.sqrt(np.mean(values**2)))
    for count in range(1, len(columns) + 1):
        for chosen in map(list, itertools.combinations(columns, count)):
            scaled = matrix[:, chosen] / scale[chosen]
            solution = np.linalg.lstsq(scaled, values, rcond=None)[0]
            residual = float(np.sqrt(np.mean((scaled @ solution - values) ** 2)))
            if (solution >= 0).all() and residual < least:
                found = dict(zip(chosen, solution / scale[chosen], strict=True))
                best, least = [float(found.get(column, 0.0)) for column in columns], residual
    return best, least


def _ring(workers: int) -> tuple[float, int]:
    """How often each byte is sent by a worker, and how many messages wait for one another."""
    return 2 * (workers - 1) / workers, 2 * (workers - 1)
