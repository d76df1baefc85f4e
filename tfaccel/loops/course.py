"""How a loop gets from one phase to the next: as a fit, with further searches as it grows."""

from tfaccel.core.workload import Workload
from tfaccel.training.course import Course
from tfaccel.training.phases import Phase
from tfaccel.training.races import Contest


class LoopCourse(Course):
    """A course that goes on searching while a plan runs, where the length is unknown.

    A trial that did not pay for the expected steps may pay for twice as many. The batches of the
    search are kept for that.
    """

    _searched: Workload | None = None
    _looked_at: int = 0

    def _end_race(self, contest: Contest) -> None:
        self._searched, self._looked_at = contest.workload, self._progress.epoch
        super()._end_race(contest)

    def look_again(self) -> None:
        """Checks and races another candidate, if the loop has doubled and one may pay."""
        found, workload = self.chooser.candidates, self._searched
        epoch = self._progress.epoch
        if self.phase is not Phase.RUN or not self._progress.grows or epoch == self._looked_at:
            return
        self._looked_at = epoch
        if workload is None or found is None:
            return
        with self.own_work():
            self.observed.agree_on_steps_to_come()
            found.allow(self.settings.budget.seconds(self.observed.workload()))
            self.phases.enter(Phase.PREDICT)
            choice = self.chooser.go_on(workload)
            if choice.phase is Phase.RUN:
                self.phases.enter(Phase.RUN)  # with the plan that runs
            else:
                self._take(choice)

    def finish(self) -> None:
        """Ends with the loop."""
        self._searched = None
        super().finish()
