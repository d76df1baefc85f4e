"""The search for the largest batch that fits."""

import dataclasses
from collections.abc import Callable, Sequence

from tfaccel.measure.outcome import Outcome


@dataclasses.dataclass(frozen=True)
class SizeTrial:
    """The result of one batch size.

    Attributes:
        batch_size: the rows of the batch.
        verdict: how the trial ended.
        peak_bytes: the most that was held (foreseen, where it was not tried): by
            TensorFlow on a GPU; above what the process had before on a CPU.
        step_seconds: a step once traced; None where none ended.
    """

    batch_size: int
    verdict: Outcome
    peak_bytes: int | None = None
    step_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Limits:
    """The bounds of a search."""

    start: int  # the first batch size to try
    limit: int  # the largest to try
    memory_bytes: int | None = None  # what a batch may take; None where running out can be met
    # Tells what the machine has left, which is never exceeded; gives None where running out can
    # be met.
    available_bytes: Callable[[], int | None] = lambda: None


def search(try_size: Callable[[int], SizeTrial], limits: Limits) -> tuple[SizeTrial, ...]:
    """Tries batch sizes: doubled while they fit, then between the last two.

    Returns:
        The trials in order. The largest that fits is the answer.

    >>> def fits_up_to_5(size):
    ...     return SizeTrial(size, Outcome.FITS if size <= 5 else Outcome.OUT_OF_MEMORY)
    >>> [trial.batch_size for trial in search(fits_up_to_5, Limits(start=1, limit=100))]
    [1, 2, 4, 8, 6, 5]
    """
    tried: list[SizeTrial] = []
    low, high, size = 0, limits.limit + 1, limits.start
    while True:
        tried.append(_within(try_size(size), limits))
        if tried[-1].verdict is Outcome.FITS:
            low = size
        else:
            high = size
        if high - low <= 1:
            return tuple(tried)
        # Nothing has failed yet, or there is a place in the middle (below `start`, too).
        aim = min(2 * low, limits.limit) if high > limits.limit else (low + high) // 2
        size = _largest_safe(low, aim, tried, limits)
        if size == low:
            foreseen = _expected(low + 1, _measured(tried))
            return (*tried, SizeTrial(low + 1, Outcome.FORESEEN, foreseen))


def _within(trial: SizeTrial, limits: Limits) -> SizeTrial:
    """The trial; its verdict is OVER if it took more memory than it may."""
    peak, most = trial.peak_bytes, limits.memory_bytes
    over = trial.verdict is Outcome.FITS and peak is not None and most is not None and peak > most
    return dataclasses.replace(trial, verdict=Outcome.OVER) if over else trial


def _measured(tried: Sequence[SizeTrial]) -> list[tuple[int, int]]:
    """The batch sizes that fit, each with the bytes of its step."""
    fits = (trial for trial in tried if trial.verdict is Outcome.FITS)
    return sorted((t.batch_size, t.peak_bytes) for t in fits if t.peak_bytes is not None)


def _expected(size: int, measured: Sequence[tuple[int, int]]) -> int:
    """The bytes that a step will take: a constant, and a part that grows with the batch.

    Both are known from two sizes; from one, the constant is taken to be all.
    """
    rows, peak = measured[-1]
    if len(measured) == 1:
        return peak
    rows_before, peak_before = measured[-2]
    return peak + max(0, peak - peak_before) * (size - rows) // (rows - rows_before)


def _largest_safe(low: int, aim: int, tried: Sequence[SizeTrial], limits: Limits) -> int:
    """The largest size up to `aim` that may be tried; `low` where there is none above it.

    It is expected to fit, and in the worst case it still fits into the machine's memory:
    whatever the constant is, twice the rows take at most twice the memory.
    """
    measured, most, left = _measured(tried), limits.memory_bytes, limits.available_bytes()
    if not measured:
        return aim

    def is_safe(size: int) -> bool:
        rows, peak = measured[-1]
        within = most is None or _expected(size, measured) <= most
        return within and (left is None or peak * size // rows <= left)

    while low < aim:
        middle = (low + aim + 1) // 2
        low, aim = (middle, aim) if is_safe(middle) else (low, middle - 1)
    return low
