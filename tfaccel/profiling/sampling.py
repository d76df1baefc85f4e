"""How long a step waits for its input: measured on some steps, at a bounded cost."""

import dataclasses
from typing import Any

from tfaccel.core.workload import global_batch_size, shapes
from tfaccel.measure.timing import Clock
from tfaccel.steps.replay import feed
from tfaccel.steps.taken_batches import TakenBatches

# The share of the training's time that handing batches on may take.
SHARE = 0.005


@dataclasses.dataclass(frozen=True)
class Sample:
    """The batches of a step, and how long it waited for them."""

    batches: int  # how many batches
    samples: int  # how many samples in them
    waited_seconds: float  # for the input pipeline
    shapes: tuple[Any, ...]  # of the first batch
    first: Any  # the first batch itself


class Sampling:
    """Takes a step's batches out of the iterator first, which shows the waiting by itself.

    A step waits for its input inside the compiled function, where that can't be timed. Here
    the batches are taken first and handed on through an iterator of the same
    `element_spec`, so the step is the same to the last bit.

    Attributes:
        cost_seconds: that handing on has taken so far.
    """

    def __init__(self, clock: Clock):
        self.cost_seconds = 0.0
        self._clock = clock
        self._last_cost = 0.0

    def is_due(self, elapsed_seconds: float) -> bool:
        """Whether one more sample keeps the cost below `SHARE` of the time so far."""
        return self.cost_seconds + self._last_cost <= SHARE * elapsed_seconds

    def take(self, iterator: Any, taken: TakenBatches, strategy: Any = None) -> tuple[Sample, Any]:
        """The batches of one call, and an iterator that gives them again.

        Args:
            iterator: the fit's.
            taken: holds the batches that are out of it.
            strategy: by which it was distributed; None where it was not.

        Raises:
            StopIteration: there are none.
        """
        start = self._clock()
        batches = taken.pull(iterator)
        waited = self._clock() - start
        feeding = feed(batches, iterator, strategy)
        self._last_cost = self._clock() - start - waited
        self.cost_seconds += self._last_cost
        samples = sum(global_batch_size(batch, strategy) for batch in batches)
        sample = Sample(len(batches), samples, waited, shapes(batches[0]), batches[0])
        return sample, feeding
