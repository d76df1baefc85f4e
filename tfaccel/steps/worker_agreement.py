"""One decision for all the processes that train together."""

import pickle
from typing import Any, TypeVar

import tensorflow as tf

from tfaccel.distribute.multi_worker import MultiWorker
from tfaccel.measure.timing import Clock

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
        """The chief's value. All processes must ask for it together."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process. All must ask for it together."""
        return flag


class _Workers(WorkerAgreement):
    is_alone = False

    def __init__(self, strategy: MultiWorker):
        self._strategy = strategy
        self.is_chief = strategy.is_chief

    def clock(self, clock: Clock) -> Clock:
        return lambda: self._strategy.share_number(clock())

    def same(self, value: Any) -> Any:
        # The data comes from another process of this very program.
        data = pickle.dumps(value) if self.is_chief else b""
        return pickle.loads(self._strategy.share_bytes(data))

    def any(self, flag: bool) -> bool:
        return bool(self._strategy.reduce("SUM", tf.constant(int(flag)), None) > 0)


def agreement_of(strategy: tf.distribute.Strategy) -> WorkerAgreement:
    """The agreement of the processes under a strategy."""
    if isinstance(strategy, MultiWorker) and strategy.num_workers > 1:
        return _Workers(strategy)
    return WorkerAgreement()
