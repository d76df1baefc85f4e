"""The races of a fit: a candidate's, and later the regular comparisons of its plan."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tfaccel.autotune.report import Report
from tfaccel.autotune.trial import Trial
from tfaccel.compat import keras_private
from tfaccel.core.workload import Workload
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.racing import Race
from tfaccel.measure.timing import Speedup, wait_for
from tfaccel.steps.remembered import Pending, TracedStep
from tfaccel.steps.snapshot import build_used_optimizer
from tfaccel.system.later import later
from tfaccel.training.run import PlanRun

TYPE_CHECKING = False  # see tfaccel/system/later.py
if TYPE_CHECKING:
    from tfaccel.training import choose, guarded_step, live_gain, live_race
else:
    guarded_step = later("tfaccel.training.guarded_step")
    live_gain = later("tfaccel.training.live_gain")
    live_race = later("tfaccel.training.live_race")


@dataclasses.dataclass(frozen=True)
class Contest:
    """A candidate in its race.

    Attributes:
        trial: its check.
        workload: what it was checked for.
        race: the live race.
    """

    trial: Trial
    workload: Workload
    race: live_race.LiveRace


@dataclasses.dataclass
class _Untraced:
    """An original step that never ran in this process, as the cache gave a plan at once.

    Its trace is worth paying for once that is `LIVE_SHARE` of the time.

    Attributes:
        report: of the plan that runs.
        calls: how many steps of the plan run before that.
    """

    report: Report
    calls: float

    @classmethod
    def of(cls, report: Report) -> _Untraced:
        """How long to wait, from the times of a trace and a step when the plan was chosen."""
        seconds = _step_seconds(report) / report.speedup
        trace = report.trials[0].compile_seconds
        return cls(report, trace / (live_gain.LIVE_SHARE * seconds) if seconds else math.inf)

    def is_due(self) -> bool:
        """Counts a step; returns whether the original's turn has come."""
        self.calls -= 1
        return self.calls < 0


def _step_seconds(report: Report) -> float:
    """Seconds of a step of the original when the plan was chosen."""
    return report.trials[0].step_seconds or 0.0


@dataclasses.dataclass
class Races:
    """Runs the steps of a fit while two sides take turns, one race at a time.

    Attributes:
        plan_run: runs the candidate's opponent, and takes the winner; its dispatcher knows of the
            race, so nobody else takes batches out meanwhile.
        contest: the candidate in its race; None where there is none.
        live: the comparisons of the plan that runs; None where there are none.
    """

    plan_run: PlanRun
    contest: Contest | None = dataclasses.field(default=None, init=False)
    live: live_gain.LiveGain | None = dataclasses.field(default=None, init=False)
    _untraced: _Untraced | None = dataclasses.field(default=None, init=False)

    def begin(self, choice: choose.Choice, most_lost_seconds: float) -> None:
        """Begins a race between a candidate and the step that ran so far."""
        trial, workload, traced = choice.trial, choice.workload, choice.traced
        assert trial is not None and traced is not None
        build_used_optimizer(workload.model)
        race = live_race.LiveRace(
            self.plan_run.step or self.plan_run.dispatcher.run_own,
            self.plan_run.guarded(trial.plan, workload, traced),
            self.plan_run.clock,
            steps_per_call=trial.plan.steps_per_call,
            step_seconds=workload.step_seconds,
            most_lost_seconds=most_lost_seconds,
            room=self._room,
            race=choice.race,
        )
        self.contest = Contest(trial, workload, race)
        self.live, self.plan_run.dispatcher.is_racing = None, True

    def race(self, iterator: Any) -> tuple[Any, Contest]:
        """One step of the training, by the side whose turn it is."""
        contest, present = self.contest, self.plan_run.step
        assert contest is not None
        ran = contest.race.candidate if contest.race.race.candidate_is_next else present
        self.plan_run.dispatcher.built = None if ran is None else ran.function
        return contest.race(iterator), contest

    def end(self, contest: Contest, won: bool) -> None:
        """Ends a decided race."""
        self.forget()
        candidate, present = contest.race.candidate, self.plan_run.step
        if won:
            candidate.room = self._room
            candidate.resume()
            self.plan_run.install(contest.trial.plan, candidate, contest.workload)
        elif present is not None:
            present.resume()  # so that putting its state back never undoes the other side's steps

    def note_failure(self, why: str, chooser: choose.PlanChooser) -> Report | None:
        """Notes the failure of a race's candidate, if there is a race, as a trial of the search.

        Args:
            why: the candidate failed.
            chooser: has the search.

        Returns:
            The search, whose plan goes on; None where no candidate of a race failed.
        """
        contest, found = self.contest, chooser.candidates
        if contest is None or found is None or not contest.race.candidate.has_failed:
            return None
        failed = dataclasses.replace(contest.trial, outcome=Outcome.FAILED, reason=why)
        found.take(failed)
        self.plan_run.memory.drop(failed.plan, self.plan_run.observed.element_spec)
        return found.report()

    def broken_off(self, chooser: choose.PlanChooser) -> Report:
        """Leaves an undecided race to the next fit, as this one ends.

        A race against a plan that had won before is dropped: the next fit begins with that plan.

        Args:
            chooser: has the search so far.

        Returns:
            The report of this fit.
        """
        contest, memory, found = self.contest, self.plan_run.memory, chooser.candidates
        assert contest is not None and found is not None
        trial, candidate = contest.trial, contest.race.candidate
        if candidate.has_run and found.plan.is_baseline:
            observed = self.plan_run.observed
            spec, step = observed.element_spec, candidate.function
            memory.keep(TracedStep(trial.plan, spec, step, observed.prepared))
            memory.note_pending(Pending(spec, trial, contest.race.race, tuple(found.trials)))
        candidate.release()
        self.forget()
        return found.broken_off(trial)

    def forget(self) -> None:
        """Forgets the race, so that others may measure and look at the running step."""
        present = self.plan_run.step
        self.contest, self.plan_run.dispatcher.is_racing = None, False
        self.plan_run.dispatcher.built = None if present is None else present.function

    def watch(self, report: Report, race: Race | None) -> None:
        """Compares the running plan with the original step from time to time from now on.

        Args:
            report: has the plan's speedup, as far as it was measured.
            race: that the plan has won against the original step; None where there was none.
        """
        step = self.plan_run.step
        if step is None or not report.gain.pairs:
            return
        run = self.plan_run
        if not run.observed.seconds and not keras_private.trace_counter(run.dispatcher.own)():
            self._untraced = _Untraced.of(report)
            return
        own = race is not None and race.gain == report.gain
        self.live = live_gain.LiveGain(
            self.plan_run.dispatcher.run_own,
            step,
            self.plan_run.clock,
            race=race if own else None,
            steps_per_call=self.plan_run.plan.steps_per_call,
            step_seconds=self.plan_run.observed.usual_seconds or _step_seconds(report),
            gain=report.speedup,
            room=self._room,
        )

    def run(self, iterator: Any) -> tuple[Any, Speedup | None]:
        """One step under the plan or of a comparison, and the speedup where a comparison ended."""
        step, live = self.plan_run.step, self.live
        assert step is not None
        if live is None:
            return self._watched_at_last(iterator, step), None
        before = live.race
        logs = live(iterator)
        if before is live.race:
            return logs, None
        self.plan_run.dispatcher.is_racing = live.race is not None
        return logs, live.gain if live.race is None else None

    def _watched_at_last(self, iterator: Any, step: guarded_step.GuardedStep) -> Any:
        """A step of the plan, or the original's first, which traces it for comparisons."""
        untraced = self._untraced
        if untraced is None or step.function.ahead or not untraced.is_due():
            return step(iterator)
        logs = self.plan_run.dispatcher.run_own(iterator)
        wait_for(logs)
        step.resume()
        self._untraced = None
        self.watch(untraced.report, None)
        return logs

    def begin_epoch(self) -> None:
        """Begins an epoch, and with it a new turn."""
        if self.live is not None:
            self.live.begin_epoch()
        if self.contest is not None:
            self.contest.race.begin_epoch()
            self.contest.race.candidate.begin_epoch()

    def _room(self) -> int:
        return self.plan_run.progress.room
