"""The time for which a training waits because of trials, beside the trials themselves."""

from tfaccel.measure.timing import Clock


class Waiting:
    """Adds up the time lost in the first steps of a fit, and at the epoch after its trials.

    Keras destroys an epoch's iterator when the next epoch begins. That may wait for the thread
    by which tf.data autotunes the user's pipeline, which sleeps longer in a longer epoch. So an
    epoch with trials in it can make the next one begin late.

    Args:
        clock: seconds.

    Attributes:
        is_expected: whether there were trials, so that the next epoch's beginning counts.
        is_over: whether that beginning has been timed.
    """

    def __init__(self, clock: Clock):
        self.is_expected = self.is_over = False
        self._clock = clock
        self._seconds = 0.0
        self._epoch_begun: float | None = None
        self._usual: float | None = None

    def add(self, seconds: float) -> None:
        """Adds seconds that would not have been lost without tfaccel."""
        self._seconds += seconds

    def taken(self) -> float:
        """Hands the seconds added so far over to the caller, and begins again at 0."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def begin_epoch(self) -> None:
        """Begins an epoch, whose iterator is made next."""
        wanted = self._usual is None or self.is_expected
        self._epoch_begun = self._clock() if wanted else None

    def begin_steps(self) -> float:
        """Begins a step; returns how much later than usual an epoch's first one is, else 0."""
        begun, self._epoch_begun = self._epoch_begun, None
        if begun is None:
            return 0.0
        seconds = self._clock() - begun
        if self._usual is None:
            self._usual = seconds
            return 0.0
        self.is_over, self.is_expected = True, False
        return max(0.0, seconds - self._usual)
