"""A step under a plan that can be undone where it fails in its graph."""

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfaccel.steps.compiled_step import BuiltStep, StepFunction
from tfaccel.steps.replay import END_OF_DATA, feed
from tfaccel.steps.snapshot import Snapshot
from tfaccel.steps.taken_batches import TakenBatches

# Steps between two copies of what the step assigns: a copy takes some 0.2 ms.
MOST_STEPS = 16


class UndoableStep:
    """Runs a built step, and has at hand what is needed to make its latest steps by another.

    That is the state before them, and their batches. The step holds these in its graph; where it
    can't (several steps in one call, XLA, a GPU), each is taken out of the iterator and fed.

    Args:
        built: the step.
        taken: has the batches that are out of the iterator.

    Attributes:
        built: as given.
    """

    def __init__(self, built: BuiltStep, taken: TakenBatches):
        self.built = built
        self._taken = taken
        self._before = Snapshot(())
        self._steps = 0  # since the state was kept
        self._has_failed = False
        self._iterator: Callable[[], Any] = lambda: None
        built.touched.on_more = self._learn
        self._learn()

    def _learn(self) -> None:
        """The step was traced, and is about to run."""
        self._before.include(self.built.touched.assigned())

    def widen(self, batch: Any) -> None:
        """The step was traced: from now on it holds some batches like this one."""
        if self.built.held is not None:
            self.built.held.widen(batch, MOST_STEPS)

    def others_run(self) -> None:
        """The state changes otherwise than by this step alone: it is to be kept anew."""
        self._iterator = lambda: None

    def __call__(self, iterator: tf.data.Iterator) -> Any:
        held, self._has_failed = self.built.held, False
        length = 0 if held is None else held.length
        if self._steps >= length or self._iterator() is not iterator:
            self._keep_state(iterator)
        if not length:
            iterator = feed(self._taken.pull(iterator), iterator)
        try:
            logs = self.built(iterator)
        except END_OF_DATA:
            raise
        except Exception:
            self._has_failed = True
            raise
        self._steps += 1
        return logs

    def _keep_state(self, iterator: tf.data.Iterator) -> None:
        self._before.take_anew()
        self._steps, self._iterator = 0, weakref.ref(iterator)
        if self.built.held is not None:
            self.built.held.mark_good()

    def redone(self, own: StepFunction, iterator: tf.data.Iterator) -> Any:
        """Where this step has failed: `own` makes its latest steps, from the state before them.

        Args:
            own: the original step.
            iterator: as the step was handed it.

        Returns:
            The logs for the batch of the step that failed; None where that is still to come.
        """
        batches: tuple[Any, ...] = ()
        logs = None
        if self._has_failed:
            with contextlib.suppress(Exception):
                batches = self._undone()
        for batch in batches:
            logs = own(feed((batch,), iterator))
        return logs if len(batches) > self._steps else None

    def _undone(self) -> tuple[Any, ...]:
        """Puts the state back, and gives the batches since it was kept."""
        self._has_failed, held = False, self.built.held
        parts = held.since_good() if held is not None else None
        self._before.restore()
        return tuple(batch for part in parts or () for batch in part)
