"""Times of steps, and the figures that follow from them."""

import dataclasses
import math
import statistics
from array import array

# Above this share of waiting a step counts as input-bound, as TensorFlow's own profiler has it:
# kHighlyInfeedBoundThresholdInPercent in tensorflow/core/profiler/convert/
# op_stats_to_input_pipeline_analysis.cc
INPUT_BOUND_SHARE = 0.2


def percentile(values: "array[float] | list[float]", share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed (nearest rank).

    >>> percentile([5.0, 1.0, 3.0, 2.0, 4.0], 0.95)
    5.0
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclasses.dataclass
class Tally:
    """The regular steps of an interval or of a whole training.

    A call of the train function runs `steps_per_execution` batches; times are kept
    for one batch.
    """

    # Of each call, for one batch.
    step_seconds: "array[float]" = dataclasses.field(default_factory=lambda: array("d"))
    batches: int = 0  # that the calls ran
    samples: int | None = 0  # in them; None once a batch of unknown size was met
    wall_seconds: float = 0.0  # from the first call's start to the last's end, less irregular ones
    waited_seconds: float = 0.0  # for input, in the calls in which that was measured
    sampled_seconds: float = 0.0  # of these calls

    def add(
        self, seconds: float, batches: int, samples: int | None, waited_seconds: float | None
    ) -> None:
        """Adds one call of the step in use."""
        self.step_seconds.append(seconds / batches)
        self.add_other(batches, samples)
        if waited_seconds is not None:
            self.waited_seconds += waited_seconds
            self.sampled_seconds += seconds

    def add_other(self, batches: int, samples: int | None) -> None:
        """Adds a call of the user's own step, run for comparison: throughput counts it too."""
        self.batches += batches
        self.samples = None if samples is None or self.samples is None else self.samples + samples

    @property
    def median_seconds(self) -> float | None:
        """The median step; None without steps."""
        return statistics.median(self.step_seconds) if self.step_seconds else None

    @property
    def p95_seconds(self) -> float | None:
        """The time that 95 % of the steps do not exceed; None without steps."""
        return percentile(self.step_seconds, 0.95) if self.step_seconds else None

    @property
    def input_wait_share(self) -> float | None:
        """The share of a step's time spent waiting for input; None where never measured."""
        return self.waited_seconds / self.sampled_seconds if self.sampled_seconds else None

    @property
    def is_input_bound(self) -> bool:
        """Whether a faster step would mostly wait longer."""
        return (self.input_wait_share or 0.0) >= INPUT_BOUND_SHARE

    @property
    def batches_per_second(self) -> float | None:
        """Throughput with all that happens between steps; None without steps."""
        return self.batches / self.wall_seconds if self.wall_seconds else None

    @property
    def samples_per_second(self) -> float | None:
        """Throughput; None where the batch size is unknown."""
        known = self.wall_seconds and self.samples is not None
        return self.samples / self.wall_seconds if known else None  # type: ignore[operator]
