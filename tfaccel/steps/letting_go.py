"""Destroying iterators in a thread, so that the training need not wait."""

import threading
import time
from typing import Any

from tfaccel.measure.timing import Clock

# After so long Keras has let go of an iterator itself: when the next epoch has begun, or `fit`
# has returned.
HELD_SECONDS = 1.0
# The thread's sleep is no longer than it has lived: what lived shorter is not worth one.
_LEAST_SECONDS = 1.0
# Of the threads.
NAME = "tfaccel lets go"


class LettingGo:
    """Holds the iterator of an epoch until Keras is done with it, and destroys it in a thread.

    Destroying an iterator joins tf.data's autotuning thread. The thread is woken for that, but may
    check whether to end before it is told to, and then sleeps again for up to a minute. A fit whose
    batches come from such a dataset would return, or begin its next epoch, that much later.

    Source: `Model::OptimizeLoop` in tensorflow/core/framework/model.cc and
    `CancellationManager::StartCancel`, which calls back first and says `IsCancelled` then.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Clock = time.monotonic):
        self._held: Any = None
        self._since = 0.0
        self._clock = clock

    def hold(self, iterator: Any) -> None:
        """Holds the present epoch's iterator, and lets go of the one before."""
        if iterator is not self._held:
            self.release()
            self._held, self._since = iterator, self._clock()

    def release(self) -> None:
        """Lets go of the iterator, which no step needs any more."""
        held, self._held = [self._held], None
        if held[0] is not None and self._clock() - self._since >= _LEAST_SECONDS:
            # The process waits for it at its end, as TensorFlow must not go away meanwhile.
            threading.Thread(target=_emptied, args=(held,), name=NAME).start()


def _emptied(held: list[Any]) -> None:
    time.sleep(HELD_SECONDS)
    held.clear()
