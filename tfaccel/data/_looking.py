"""The bounds of a check of data, and the log of what it finds."""

import collections
import dataclasses
import math
import threading

import numpy as np

from tfaccel.data.findings import Fault, Findings
from tfaccel.measure.timing import Clock

# A million faults would be a list of hundreds of megabytes; beyond this they are counted.
LISTED = 10_000


class Log:
    """Collects the faults of a check; several threads may add to it."""

    def __init__(self, source: str, total: int | None = None):
        self.samples = 0  # that were looked at
        self.dropped = 0  # samples that were left out
        self.seconds = 0.0  # how long looking took
        self.total = total
        self._source = source
        self._faults: list[Fault] = []
        self._counts: collections.Counter[str] = collections.Counter()
        self._unseen: dict[str, None] = {}
        self._once: set[object] = set()
        self._lock = threading.Lock()

    def add(self, *faults: Fault) -> None:
        """Counts faults, and keeps the first ones."""
        with self._lock:
            for fault in faults:
                self._counts[fault.kind.value] += 1
                if len(self._faults) < LISTED:
                    self._faults.append(fault)

    def first_time(self, key: object) -> bool:
        """Whether this is the first call with this key."""
        with self._lock:
            known = key in self._once
            self._once.add(key)
            return not known

    def not_looked_at(self, said: str) -> None:
        """Notes, once, a clause on what was not looked at."""
        with self._lock:
            self._unseen[said] = None

    def count(self, samples: int = 0, dropped: int = 0) -> None:
        """Adds to the numbers of samples that were looked at, and that were left out."""
        with self._lock:
            self.samples += samples
            self.dropped += dropped

    def findings(self) -> Findings:
        """What was found so far."""
        with self._lock:
            return Findings(
                faults=tuple(self._faults),
                counts=dict(self._counts),
                source=self._source,
                samples=self.samples,
                total=self.total,
                not_looked_at=tuple(self._unseen),
                dropped=self.dropped,
                seconds=self.seconds,
            )


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How many samples may be looked at, and for how long."""

    max_samples: int | None  # at most so many samples (or files); None for all
    max_seconds: float | None  # no sample is begun after these; None for no bound
    clock: Clock  # seconds
    start: float  # when looking began

    @classmethod
    def begin(cls, max_samples: int | None, max_seconds: float | None, clock: Clock) -> "Bounds":
        """Bounds of a check that begins now.

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
        """Seconds since the check began."""
        return self.clock() - self.start

    def spread(self, count: int) -> np.ndarray:
        """The indices to look at: all, or `max_samples` of them, evenly spread."""
        if self.max_samples is None or self.max_samples >= count:
            return np.arange(count)
        return np.linspace(0, count - 1, int(self.max_samples)).astype(np.int64)

    def left_out(self, seen: int, planned: int, total: int, what: str) -> list[str]:
        """Clauses on what was not looked at, for data with random access."""
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
