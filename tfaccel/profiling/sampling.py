"""How long a step waits for its input, and each worker for its own: measured on some steps."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from tfaccel.compat.patching import instance_attribute
from tfaccel.core.workload import global_batch_size, shapes
from tfaccel.measure.timing import Clock
from tfaccel.measure.units import milliseconds
from tfaccel.profiling.tally import INPUT_BOUND_SHARE
from tfaccel.steps.replay import feed
from tfaccel.steps.taken_batches import TakenBatches
from tfaccel.steps.worker_agreement import WorkerAgreement

# The share of the training's time that handing batches on may take.
SHARE = 0.005


@dataclasses.dataclass(frozen=True)
class Sample:
    """The batches of a step, and how long it waited for them."""

    batches: int  # how many batches
    samples: int  # how many samples in them
    waited_seconds: float  # for the input pipeline
    own_seconds: float  # of that for this process's own, without other workers'
    handing_seconds: float  # that handing them on took
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
        with _meetings(strategy, self._clock) as met:
            batches = taken.pull(iterator)
        waited = self._clock() - start
        feeding = feed(batches, iterator, strategy)
        self._last_cost = self._clock() - start - waited
        self.cost_seconds += self._last_cost
        samples = sum(global_batch_size(batch, strategy) for batch in batches)
        own = max(0.0, waited - sum(met))
        first, cost = batches[0], self._last_cost
        return Sample(len(batches), samples, waited, own, cost, shapes(first), first), feeding


@contextlib.contextmanager
def _meetings(strategy: Any, clock: Clock) -> Iterator[list[float]]:
    """Collects the seconds that reductions take inside.

    A distributed iterator that may run out of data asks all workers whether one has some left, so
    that a worker gets its batch when the last one has its own.

    Args:
        strategy: by which the iterator was distributed; None where it was not.
        clock: seconds.
    """
    seconds: list[float] = []
    if strategy is None:
        yield seconds
        return
    own = strategy.reduce

    def reduce(*args: Any, **kwargs: Any) -> Any:
        start = clock()
        try:
            return own(*args, **kwargs)
        finally:
            seconds.append(clock() - start)

    with instance_attribute(strategy, "reduce", reduce):
        yield seconds


@dataclasses.dataclass(frozen=True)
class WorkerInput:
    """The waiting of each worker for its own input.

    Attributes:
        waited_seconds: of each worker, for a batch, on average; the slowest one's is in each step.
        step_seconds: of all of them together, that waiting included.
        reads_all: whether each reads all the data, and takes its share of every batch.
    """

    waited_seconds: tuple[float, ...]
    step_seconds: float
    reads_all: bool

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of a step that each waits for its own input."""
        return tuple(min(1.0, waited / self.step_seconds) for waited in self.waited_seconds)

    @property
    def advice(self) -> str:
        """Sentences on the worker that waits longest; empty where the input sets no pace.

        The batches of that worker take a step's time to be made, as its buffer is empty. The rest
        of the step is what is left if none waits.
        """
        workers, step = len(self.waited_seconds), self.step_seconds
        slowest = max(range(workers), key=lambda index: self.waited_seconds[index])
        waited = self.waited_seconds[slowest]
        if waited < INPUT_BOUND_SHARE * step:
            return ""
        rest = step - waited
        said = (
            f"Worker {slowest} waits longest for its input: {milliseconds(waited)} of a step of "
            f"{milliseconds(step)}, which all wait for{self._others(slowest)}."
        )
        if self.reads_all:
            filed = max(rest, step / workers)
            said += (
                f' Each worker reads all the data. By auto_shard_policy="file" it reads '
                f"1/{workers}, which may take a step to {milliseconds(filed)}; there must be as "
                "many files as workers."
            )
        return f"{said} {self._service(rest)}"

    def _others(self, slowest: int) -> str:
        most = max(w for i, w in enumerate(self.waited_seconds) if i != slowest)
        if most >= INPUT_BOUND_SHARE * self.step_seconds:
            return ""
        return f"; the others wait {milliseconds(most)} at most, so it is slower than they are"

    def _service(self, rest: float) -> str:
        """How many processes make batches as fast as they are trained on."""
        batch_seconds = self.step_seconds * (1 if self.reads_all else len(self.waited_seconds))
        count = math.ceil(batch_seconds / rest) if rest > 0 else 0
        processes = f"{count} processes" if count else "processes"
        return (
            "A tf.data service (tf.data.experimental.service) gives all workers batches from "
            f"{processes} like that worker's pipeline, for a step of {milliseconds(max(0, rest))}."
        )


@dataclasses.dataclass
class OwnWaits:
    """What this worker waited for its own input, in the calls in which that was measured."""

    waited_seconds: float = 0.0
    seconds: float = 0.0  # of these calls
    batches: int = 0  # in them

    def add(self, waited_seconds: float, seconds: float, batches: int) -> None:
        """Adds a call."""
        self.waited_seconds += waited_seconds
        self.seconds += seconds
        self.batches += batches

    def of_all(self, agreement: WorkerAgreement, reads_all: bool) -> WorkerInput | None:
        """What all workers found, on each of them, all together; None where there is one."""
        if agreement.is_alone:
            return None
        batches = max(1, self.batches)
        waited = agreement.each(self.waited_seconds / batches)
        step = max(agreement.each(self.seconds / batches))
        return WorkerInput(tuple(waited), step, reads_all) if step > 0 else None
