"""Whether memory grows while a training goes on, and by how much."""

import contextlib
import dataclasses
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfaccel.system.memory import process_bytes

FLAT, GROWS = "flat", "grows"
# The most readings that are kept. When there are more, every other one is dropped and the distance
# doubles, so a training of a million steps has some two thousand readings.
MOST = 256
# The fewest readings after the warm-up that tell growth from chance.
LEAST = 8
# Bytes that an allocator takes and gives back although nothing grows.
_NOISE_BYTES = 8 * 2**20
# A rise that goes on: each quarter has at least this part of an even share.
_STEADY = 0.25


class Reading(NamedTuple):
    """The memory held now, in bytes; None where it is unknown."""

    host: int | None
    device: int | None


def read() -> Reading:
    """This process's memory, and what TensorFlow holds on the first GPU.

    Source: https://www.tensorflow.org/api_docs/python/tf/config/experimental/get_memory_info
    """
    device = None
    if tf.config.list_logical_devices("GPU"):
        with contextlib.suppress(Exception):  # an allocator that keeps no account
            device = int(tf.config.experimental.get_memory_info("GPU:0")["current"])
    return Reading(process_bytes(), device)


@dataclasses.dataclass(frozen=True)
class Trend:
    """How a memory changed over a training.

    Attributes:
        bytes: the last reading; None without any.
        bytes_per_step: the slope after the warm-up; None with too few readings.
        verdict: `flat` or `grows`; None with too few readings.
    """

    bytes: int | None = None
    bytes_per_step: float | None = None
    verdict: str | None = None


def trend(steps: Sequence[int], sizes: Sequence[int]) -> Trend:
    """The trend of readings in the later half of the steps: what was before is warm-up.

    The slope is Theil and Sen's, the median of the slopes between any two readings, which a jump
    does not change. Memory grows where the slope exceeds the noise and each quarter of the readings
    lies above the one before: neither a jump nor a buffer that fills does that.

    Source: P. K. Sen, https://doi.org/10.1080/01621459.1968.10480934
    """
    if not sizes:
        return Trend()
    late = [(step, size) for step, size in zip(steps, sizes, strict=True) if 2 * step > steps[-1]]
    if len(late) < LEAST:
        return Trend(sizes[-1])
    x, y = np.array(late, np.float64).T
    first, second = np.triu_indices(len(x), 1)
    slope = float(np.median((y[second] - y[first]) / (x[second] - x[first])))
    ends = [len(y) * quarter // 4 for quarter in range(5)]
    levels = [statistics.median(y[begin:end]) for begin, end in itertools.pairwise(ends)]
    even = (levels[-1] - levels[0]) / 3
    is_steady = even > 0 and min(b - a for a, b in itertools.pairwise(levels)) >= _STEADY * even
    grows = is_steady and slope * (x[-1] - x[0]) >= _NOISE_BYTES
    return Trend(sizes[-1], slope, GROWS if grows else FLAT)


class Growth:
    """Reads memory at some of a training's steps.

    Args:
        reader: gives the memory held now; None for `read`.
    """

    def __init__(self, reader: Callable[[], Reading] | None = None):
        self._reader = reader or read
        self._steps: list[int] = []
        self._readings: list[Reading] = []
        self._stride = 1

    def note(self, step: int) -> None:
        """`step` steps are done; reads where it is time to."""
        if self._steps and step - self._steps[-1] < self._stride:
            return
        reading = self._reader()  # which may fail: both lists have one of each
        self._steps.append(step)
        self._readings.append(reading)
        if len(self._steps) > MOST:
            self._steps, self._readings = self._steps[::2], self._readings[::2]
            self._stride *= 2

    @property
    def host(self) -> Trend:
        """The trend of the process's memory."""
        return self._trend([reading.host for reading in self._readings])

    @property
    def device(self) -> Trend:
        """The trend of the first GPU's memory."""
        return self._trend([reading.device for reading in self._readings])

    def _trend(self, sizes: Sequence[int | None]) -> Trend:
        known = [(step, size) for step, size in zip(self._steps, sizes, strict=True) if size]
        return trend([step for step, _ in known], [size for _, size in known])
