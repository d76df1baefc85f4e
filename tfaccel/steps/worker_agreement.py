"""One decision for all the processes that train together."""

from __future__ import annotations

import pickle
from typing import Any, TypeVar

import tensorflow as tf

from tfaccel.core.workload import default_strategy
from tfaccel.measure.timing import Clock
from tfaccel.system.later import later

TYPE_CHECKING = False  # see tfaccel/system/later.py
if TYPE_CHECKING:
    from tfaccel.distribute import multi_worker
else:
    multi_worker = later("tfaccel.distribute.multi_worker")

T = TypeVar("T")


class WorkerAgreement:
    """What processes decide together; here for a process that trains alone.

    With several workers each step is one step of all of them, so they must run the same function
    at the same time. They run the same program on the same numbers; all that may differ between
    them (clocks, caches, errors) is agreed on here. Only the chief prints and writes files.
    """

    is_alone = True
    is_chief = True

    def clock(self, clock: Clock) -> Clock:
        """A clock that tells all processes the same."""
        return clock

    def same(self, value: T) -> T:
        """The chief's value. All processes must ask for it together.

        One that can't be handed over (of a class that is known by no name) is an error in all of
        them: who alone went on to the next question would break the answers of all.
        """
        return value

    def each(self, number: float) -> list[float]:
        """The number of each process, in their order. All must ask for it together."""
        return [number]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process. All must ask for it together."""
        return flag


class _Workers(WorkerAgreement):
    is_alone = False

    def __init__(self, strategy: multi_worker.MultiWorker):
        self._strategy = strategy
        self.is_chief = strategy.is_chief

    def clock(self, clock: Clock) -> Clock:
        return lambda: self._strategy.share_number(clock())

    def same(self, value: Any) -> Any:
        found = error = None
        data = b""
        try:
            data = pickle.dumps(value) if self.is_chief else b""
        except Exception as raised:
            error = raised
        data = self._strategy.share_bytes(data)
        try:
            # What comes in comes from another process of this very program.
            found = pickle.loads(data)
        except Exception as raised:
            error = error or raised
        if self.any(error is not None):
            raise error or RuntimeError("it could not be handed to another worker")
        return found

    def each(self, number: float) -> list[float]:
        return self._strategy.numbers_of_all(number)

    def any(self, flag: bool) -> bool:
        return bool(self._strategy.reduce("SUM", tf.constant(int(flag)), None) > 0)


def agreement_of(strategy: tf.distribute.Strategy) -> WorkerAgreement:
    """The agreement of the processes under a strategy."""
    if strategy is default_strategy() or not isinstance(strategy, multi_worker.MultiWorker):
        return WorkerAgreement()
    return _Workers(strategy) if strategy.num_workers > 1 else WorkerAgreement()
