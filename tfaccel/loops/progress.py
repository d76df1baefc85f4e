"""How far a loop has come, and what is to follow."""

from collections.abc import Callable

from tfaccel.autotune.options import COLLECTED_STEPS


class LoopProgress:
    """Counts the steps of a loop.

    Nobody knows how long a loop goes on unless it is said. Then as many steps are taken to follow
    as were made already: so the time that a search may cost grows with the time trained, and at
    each doubling it is asked again whether one pays.

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
        """Goes up at each doubling of the steps that were made."""
        return self._calls().bit_length()

    @property
    def epochs_left(self) -> int:
        """There is one."""
        return 1

    @property
    def steps_to_come(self) -> int | None:
        """Steps that are to come; None where nothing can be said yet."""
        calls = self._calls()
        if self._steps is not None:
            return max(0, self._steps - calls)
        return calls if calls >= COLLECTED_STEPS else None

    @property
    def grows(self) -> bool:
        """Whether more steps are to come, as far as is known, the more were made."""
        return self._steps is None

    @property
    def room(self) -> int:
        """No step is made before its call: the loop has not handed its batch over."""
        return 1
