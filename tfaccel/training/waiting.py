"""What a training waits for on account of trials, beside the trials themselves."""

from tfaccel.measure.timing import Clock


class Waiting:
    """Adds up what the first steps of a fit take longer, and the epoch after the trials.

    Keras destroys an epoch's iterator when the next epoch begins. That may wait for the thread
    by which tf.data autotunes the user's pipeline, which sleeps the longer the longer the epoch
    was; so one with trials in it makes the next one begin late, now and then.

    Args:
        clock: seconds.

    Attributes:
        is_expected: whether there were trials, so that the next epoch's beginning counts.
        is_over: whether that has been seen.
    """

    def __init__(self, clock: Clock):
        self.is_expected = self.is_over = False
        self._clock = clock
        self._seconds = 0.0
        self._epoch_begun: float | None = None
        self._usual: float | None = None

    def add(self, seconds: float) -> None:
        """Something took so much longer than without tfaccel."""
        self._seconds += seconds

    def taken(self) -> float:
        """What was added so far, from now on counted by the caller."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def begin_epoch(self) -> None:
        """An epoch begins, and with it the making of its iterator."""
        wanted = self._usual is None or self.is_expected
        self._epoch_begun = self._clock() if wanted else None

    def begin_steps(self) -> float:
        """A step is about to run; gives how much later than usual the first of its epoch is."""
        begun, self._epoch_begun = self._epoch_begun, None
        if begun is None:
            return 0.0
        seconds = self._clock() - begun
        if self._usual is None:
            self._usual = seconds
            return 0.0
        self.is_over, self.is_expected = True, False
        return max(0.0, seconds - self._usual)
