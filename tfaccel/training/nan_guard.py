"""The last good point of a training, and the way back to it."""

from collections.abc import Callable

from tfaccel.core.replicas import local_values
from tfaccel.core.workload import Workload
from tfaccel.measure.finite import all_finite
from tfaccel.measure.timing import Clock
from tfaccel.steps.resources import Touched
from tfaccel.steps.snapshot import Snapshot

# The share of the training's time that keeping good points may take.
_COST_SHARE = 0.01
# The most steps between two looks at the clock.
_MOST_STEPS = 1000


class NaNGuard:
    """Keeps a copy of the state from time to time, while losses are finite.

    Args:
        workload: whose state to keep, until a step was traced.
        clock: seconds.
        touched: the state that the guarded step uses. Once it is known, only what the step
            assigns is kept: values that callbacks set (a learning rate) stay as they are.
        on_keep: called when a copy was made.
    """

    def __init__(
        self,
        workload: Workload,
        clock: Clock,
        touched: Touched,
        on_keep: Callable[[], None] = lambda: None,
    ):
        self._on_keep = on_keep
        self._workload = workload
        self._clock = clock
        self._touched = touched
        self._look_at = 1
        self._epoch_began = False
        self.steps_since_good = 0
        self._taken = self._copy_seconds = 0.0
        self.keep_now()

    def passed(self, is_latest: bool = True) -> None:
        """Notes a step that ended well, and keeps a copy when one is due.

        Args:
            is_latest: whether the state is the one after this step. Within a call of several
                steps it is not, as the later ones have not been checked.
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

    def keep_now(self) -> None:
        """Keeps the present state, which is good, whatever that costs."""
        self._keep(at_first=True)

    def begin_epoch(self) -> None:
        """Begins an epoch, whose copies must not bring back metrics of the epoch before."""
        self._epoch_began = True

    def learn(self) -> None:
        """Takes in newly found state of the step, before the step runs again."""
        if self._is_complete:
            self._snapshot.include(self._touched.assigned())
        else:
            self._copy()

    def _keep(self, at_first: bool = False) -> None:
        start = self._clock()
        # The loss is of the weights before the step; those after it may be broken already.
        if finite := at_first or weights_are_finite(self._workload):
            self._copy()
            self._on_keep()
        self._taken = self._clock()
        self._copy_seconds = self._taken - start
        self._look_at = self.steps_since_good + 1
        if finite:
            self.steps_since_good, self._look_at, self._epoch_began = 0, 1, False

    def _copy(self) -> None:
        assigned = self._touched.assigned()
        self._is_complete = bool(assigned)
        if assigned:
            self._snapshot = Snapshot(())
            self._snapshot.include(assigned)
        else:
            self._snapshot = Snapshot.of(self._workload)

    def restore(self) -> None:
        """Puts the state of the last good point back."""
        self._snapshot.restore()
        if self._epoch_began:
            self._workload.model.reset_metrics()


def weights_are_finite(workload: Workload) -> bool:
    """Whether every weight that is trained is finite."""
    return all(
        all_finite(local)
        for variable in workload.model.trainable_variables
        for local in local_values(variable.value)
    )
