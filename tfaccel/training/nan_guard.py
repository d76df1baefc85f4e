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
# Steps at most until the clock is looked at again.
_MOST_STEPS = 1000


class NaNGuard:
    """Keeps a copy of the state from time to time, while losses are finite.

    Args:
        workload: whose state to keep, until a step was traced.
        clock: seconds.
        touched: the state that the guarded step uses. Once it is known, what the step
            assigns is kept, and nothing else: what callbacks set (a learning rate) is theirs.
        on_keep: told when a copy was made.
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

    def keep_now(self) -> None:
        """The state is good, whatever the cost of keeping it."""
        self._keep(at_first=True)

    def begin_epoch(self) -> None:
        """An epoch begins: metrics that are put back would be those of the one before."""
        self._epoch_began = True

    def learn(self) -> None:
        """More became known of the state that the step uses; it has not run since."""
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
