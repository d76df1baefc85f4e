"""Collects faults while data is looked at, from whatever thread."""

import collections
import threading

from tfaccel.data.findings import Fault, Findings

# A million faults would be a list of hundreds of megabytes; beyond this they are counted.
LISTED = 10_000


class Log:
    """Adds faults up.

    Args:
        source: what is looked at, in words.
        total: how many samples there are; None where unknown.
        listed: how many faults are kept; more are counted.

    Attributes:
        samples: how many were looked at.
        total: how many there are; None where unknown.
        seconds: what looking took.
        dropped: how many were left out.
    """

    def __init__(self, source: str, total: int | None = None, listed: int = LISTED):
        self.samples = self.dropped = 0
        self.seconds = 0.0
        self.total = total
        self._source, self._listed = source, listed
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
                if len(self._faults) < self._listed:
                    self._faults.append(fault)

    def first_time(self, key: object) -> bool:
        """Whether this is the first call with this key."""
        with self._lock:
            known = key in self._once
            self._once.add(key)
            return not known

    def not_looked_at(self, said: str) -> None:
        """Something was left unseen; said once."""
        with self._lock:
            self._unseen[said] = None

    def count(self, samples: int = 0, dropped: int = 0) -> None:
        """Samples were looked at, or left out."""
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
