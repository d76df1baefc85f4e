"""How much time a search may take."""

import dataclasses
import numbers

from tfaccel.core.workload import Workload


@dataclasses.dataclass(frozen=True)
class Budget:
    """How many seconds tuning may cost.

    Attributes:
        share: the share of the training to come that tuning may take; None for
            no such bound.
        max_seconds: the most seconds in any case.

    Raises:
        TypeError, ValueError: a bound is no number, or negative.
    """

    share: float | None = 0.3
    max_seconds: float = 120.0

    def __post_init__(self) -> None:
        if not isinstance(self.share, numbers.Real | None):
            raise TypeError(f"`tuning_share` must be None or a number. Received: {self.share!r}")
        if self.share is not None and not 0 <= self.share <= 1:
            raise ValueError(
                f"`tuning_share` must be None or between 0 and 1. Received: {self.share!r}"
            )
        if not isinstance(self.max_seconds, numbers.Real):
            raise TypeError(
                f"`max_tuning_seconds` must be a number. Received: {self.max_seconds!r}"
            )
        if not self.max_seconds >= 0:
            raise ValueError(
                f"`max_tuning_seconds` must not be negative. Received: {self.max_seconds!r}"
            )

    def seconds(self, workload: Workload) -> float:
        """The seconds to spend on a workload; unknown length counts as none to come."""
        if self.share is None:
            return self.max_seconds
        to_come = (workload.steps_to_come or 0) * workload.step_seconds
        return min(self.max_seconds, self.share * to_come)
