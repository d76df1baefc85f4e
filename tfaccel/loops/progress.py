"""How far a loop has come, and how many steps are expected to follow."""

from collections.abc import Callable

from tfaccel.autotune.options import COLLECTED_STEPS


class LoopProgress:
    """Counts the steps of a loop.

    Where the length of a loop is not given, as many steps are expected to follow as were made
    already. So the time that a search may cost grows with the time trained, and at each doubling
    the question is asked again whether a search pays.

    Args:
        calls: how many steps were made.
        steps: how many there will be in all; None where unknown.

    >>> progress = LoopProgress(lambda: 40, None)
    >>> progress.steps_to_come, progress.grows
    (40, True)
    """

    def __init__(self, calls: Callable[[], int], steps: int | None):
        self._calls = calls
        self._steps = steps

    @property
    def epoch(self) -> int:
        """A number that grows at each doubling of the steps that were made."""
        return self._calls().bit_length()

    @property
    def epochs_left(self) -> int:
        """Always 1: a loop has no epochs."""
        return 1

    @property
    def steps_to_come(self) -> int | None:
        """Steps that are to come; None where unknown so far."""
        calls = self._calls()
        if self._steps is not None:
            return max(0, self._steps - calls)
        return calls if calls >= COLLECTED_STEPS else None

    @property
    def grows(self) -> bool:
        """Whether the known number of steps to come grows with the steps that were made."""
        return self._steps is None

    @property
    def room(self) -> int:
        """0: no step can run before its call, which hands its batch over."""
        return 1
