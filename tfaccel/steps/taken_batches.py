"""Batches that were taken out of a training's iterator, each of which is trained on."""

from typing import Any

from tfaccel.steps.replay import feed, pull


class TakenBatches:
    """Holds batches from when they are taken out until the step on them has run.

    A call begins with `fed` and ends with `done`. If its step failed, `take_back` lets another
    step have its batches.

    Args:
        model: whose `steps_per_execution` and strategy count.
    """

    def __init__(self, model: Any):
        self._model = model
        self._batches: list[Any] = []  # in order, those of the present call first
        self._lent = 0  # how many of them the present call has

    @property
    def has_more(self) -> bool:
        """Whether there are batches for later calls."""
        return len(self._batches) > self._lent

    def take(self, iterator: Any, calls: int) -> tuple[Any, ...]:
        """Takes the batches of the next calls out, each of which is fed in its turn.

        Raises:
            StopIteration: there are none.
        """
        begun, count = len(self._batches), calls * self._model.steps_per_execution
        if self._lent:  # it feeds what was taken out already, which is to be fed once more
            self._lent = 0
            return pull(iterator, count)
        pull(iterator, count, self._batches)
        return tuple(self._batches[begun:])

    def pull(self, iterator: Any) -> tuple[Any, ...]:
        """Takes the batches of the present call out.

        Raises:
            StopIteration: there are none.
        """
        if self._lent:  # it feeds what was taken out already
            return pull(iterator, self._model.steps_per_execution)
        batches = self.take(iterator, 1)
        self._lent = len(self._batches)
        return batches

    def fed(self, iterator: Any) -> Any:
        """The iterator of the present call: over batches that were taken out, if there are any."""
        if self._lent or not self._batches:
            return iterator
        batches = tuple(self._batches[: self._model.steps_per_execution])
        self._lent = len(batches)
        return feed(batches, iterator, self._model.distribute_strategy)

    def take_back(self) -> None:
        """Takes back the batches of the present call, whose step failed, for another step."""
        self._lent = 0

    def done(self) -> None:
        """Lets go of the present call's batches, whose step has run."""
        del self._batches[: self._lent]
        self._lent = 0

    def clear(self) -> None:
        """Lets go of all batches, as no call is to come."""
        self._batches.clear()
        self._lent = 0
