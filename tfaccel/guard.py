"""The last good point of a training, and the way back to it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.state import Snapshot
from tfaccel.timing import Clock
from tfaccel.workload import Workload

# The share of the training's time that keeping good points may take.
_COST_SHARE = 0.01
# Steps at most until the clock is looked at again.
_MOST_STEPS = 1000


class Guard:
    """Keeps a copy of the state from time to time, while losses are finite.

    Args:
        workload: whose state to keep.
        clock: seconds.
    """

    def __init__(self, workload: Workload, clock: Clock):
        self._workload = workload
        self._clock = clock
        self._look_at = 1
        self._keep()

    def passed(self, is_latest: bool = True) -> None:
        """A step ended well.

        Args:
            is_latest: whether the state is the one after this step. It is not where
                several steps ran in one call: nobody looked at the later ones yet.
        """
        self.steps_since_good += 1
        if not is_latest or self.steps_since_good < self._look_at:
            return
        elapsed, pause = self._clock() - self._taken, self._copy_seconds / _COST_SHARE
        if elapsed >= pause:
            self._keep()
        else:
            # Half way to where it will be due: a clock shared by workers costs a message.
            to_come = self.steps_since_good * (pause / elapsed - 1) / 2 if elapsed > 0 else 1
            self._look_at = self.steps_since_good + max(1, int(min(to_come, _MOST_STEPS)))

    def _keep(self) -> None:
        start = self._clock()
        self._snapshot = Snapshot.of(self._workload)
        self._taken = self._clock()
        self._copy_seconds = self._taken - start
        self.steps_since_good, self._look_at = 0, 1

    def restore(self) -> None:
        """Puts the state of the last good point back."""
        self._snapshot.restore()


def is_finite(logs: Any) -> bool:
    """Whether a step's loss is finite: the log `loss`, or all logs where there is none."""
    if isinstance(logs, Mapping):
        values = [logs["loss"]] if "loss" in logs else list(logs.values())
    else:
        values = tf.nest.flatten(logs)
    return all(_all_finite(value) for value in values)


def _all_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return bool(np.all(np.isfinite(np.asarray(value, dtype=np.float64))))
