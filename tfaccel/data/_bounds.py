"""What looking at data may cost."""

import dataclasses
import math

import numpy as np

from tfaccel.measure.timing import Clock


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How much may be looked at.

    Attributes:
        max_samples: at most so many samples (or files); None for all.
        max_seconds: none is begun after so many seconds; None for no such bound.
        clock: seconds.
        start: when looking began.
    """

    max_samples: int | None
    max_seconds: float | None
    clock: Clock
    start: float

    @classmethod
    def begin(cls, max_samples: int | None, max_seconds: float | None, clock: Clock) -> "Bounds":
        """Looking begins now.

        Raises:
            ValueError: a bound is not positive.
        """
        for name, value in (("max_samples", max_samples), ("max_seconds", max_seconds)):
            is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            if value is not None and not (is_number and value > 0 and not math.isnan(value)):
                raise ValueError(f"`{name}` must be positive, or None. Received: {value!r}")
        return cls(max_samples, max_seconds, clock, clock())

    @property
    def is_over(self) -> bool:
        """Whether the seconds are spent."""
        return self.max_seconds is not None and self.seconds >= self.max_seconds

    @property
    def seconds(self) -> float:
        """Since the begin."""
        return self.clock() - self.start

    def spread(self, count: int) -> np.ndarray:
        """The indices to look at: all, or `max_samples` of them, evenly spread."""
        if self.max_samples is None or self.max_samples >= count:
            return np.arange(count)
        return np.linspace(0, count - 1, int(self.max_samples)).astype(np.int64)

    def left_out(self, seen: int, planned: int, total: int, what: str) -> list[str]:
        """Sentences on what was not looked at, for data that can be reached anywhere."""
        said = []
        if planned < total:
            said.append(
                f"{total - planned:,} of {total:,} {what}, beyond `max_samples={self.max_samples}` "
                "(those looked at are evenly spread)"
            )
        if seen < planned:
            said.append(
                f"the last {planned - seen:,} {what}, as `max_seconds={self.max_seconds:g}` "
                "were spent"
            )
        return said
