"""Batches that were taken out of a training's iterator: each is trained on, whatever fails."""

from typing import Any

from tfaccel.steps.replay import feed, pull


class TakenBatches:
    """Holds batches from when they are taken out until the step on them was made.

    A call begins with `fed`, ends with `done`, and where its step failed before it was made
    `take_back` lets another step have its batches.

    Args:
        model: whose `steps_per_execution` and strategy count.
    """

    def __init__(self, model: Any):
        self._model = model
        self._batches: list[Any] = []  # in order, those of the present call first
        self._lent = 0  # how many the present call has

    @property
    def has_more(self) -> bool:
        """Whether there are some for later calls."""
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
        """The step of the present call was not made; another is to have its batches."""
        self._lent = 0

    def done(self) -> None:
        """The step of the present call was made."""
        del self._batches[: self._lent]
        self._lent = 0

    def clear(self) -> None:
        """There is no call more that could have them."""
        self._batches.clear()
        self._lent = 0
