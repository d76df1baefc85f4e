"""How a fit gets from one phase to the next, and back to the original step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras

from tfaccel.autotune.explicit_plan import served
from tfaccel.autotune.options import Options
from tfaccel.autotune.report import Report
from tfaccel.autotune.trial import error_line
from tfaccel.core.compiled_sizes import MOST_SIZES
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import Prepared
from tfaccel.core.workload import Workload
from tfaccel.measure.racing import LOOKS
from tfaccel.measure.timing import Speedup
from tfaccel.steps.compiled_step import BuiltStep
from tfaccel.steps.remembered import Memory
from tfaccel.steps.worker_agreement import WorkerAgreement
from tfaccel.system import notices
from tfaccel.system.later import later
from tfaccel.training import phases
from tfaccel.training.announcer import Announcer
from tfaccel.training.observed import Observed
from tfaccel.training.phases import IllegalTransitionError, Phase, Phases
from tfaccel.training.progress import Progress
from tfaccel.training.races import Contest, Races
from tfaccel.training.run import PlanRun
from tfaccel.training.step_dispatcher import StepDispatcher
from tfaccel.training.waiting import Waiting

TYPE_CHECKING = False  # see tfaccel/system/later.py
if TYPE_CHECKING:
    from tfaccel.training import choose
else:
    choose = later("tfaccel.training.choose")

# The speedup in validation that is assumed of a given plan, which nobody has measured.
_HOPED_GAIN = 2.0


class Course:
    """The state of one fit, and all that changes its phase; `_back_to_original` is the way back.

    Args:
        model: compiled, its train function made.
        settings: what the user asked for.
        agreement: of the processes that train together.
        dispatcher: the place of the train function.
        progress: of the fit.
        callbacks: those of the fit; None where they can't be seen.
        on_tuning: called with the budget in seconds before trials begin.
        on_report: called once with the report, when the choice is made.

    Attributes:
        phases: where the fit is.
        observed: what its steps have shown.
        memory: what fits of the compiled model leave to each other.
        plan_run: the plan that runs, if one does.
        announcer: has the report.
        waiting: the seconds that the fit waits beside its trials.
        clock: seconds, the same in all processes.
        races: of candidates, and the comparisons of the plan that runs.
        run_own: makes one step of the original.
        is_decided: whether the choice is made.
    """

    def __init__(
        self,
        *,
        model: keras.Model,
        settings: Options,
        agreement: WorkerAgreement,
        dispatcher: StepDispatcher,
        progress: Progress,
        callbacks: tuple[keras.callbacks.Callback, ...] | None,
        on_tuning: Callable[[float], None],
        on_report: Callable[[Report], None],
    ):
        self.settings = settings
        self.agreement = agreement
        self.phases = Phases()
        self.clock = clock = agreement.clock(settings.clock)
        self.memory = memory = Memory.of(model, dispatcher.own)
        self.observed = observed = Observed(
            model, dispatcher.own, memory, dispatcher.taken, progress, agreement, callbacks
        )
        self.announcer = Announcer(dispatcher, on_report)
        self.waiting = Waiting(clock)
        self._awaited_epoch: int | None = None
        self.is_decided = False
        self._dispatcher, self.run_own = dispatcher, dispatcher.run_own
        self._progress = progress
        self._on_tuning = on_tuning
        self.plan_run = PlanRun(
            settings=settings,
            observed=observed,
            memory=memory,
            progress=progress,
            dispatcher=dispatcher,
            clock=clock,
            agreement=agreement,
            on_abandon=self._abandon,
            on_many_sizes=self._go_on_for_any_size,
            on_wait=self.announcer.add_wait,
        )
        self.races = Races(self.plan_run)

    @functools.cached_property
    def chooser(self) -> choose.PlanChooser:
        """Decides by the cache and by trials; it has the search."""
        return choose.PlanChooser(
            settings=self.settings,
            observed=self.observed,
            baseline=self._dispatcher.own,
            memory=self.memory,
            progress=self._progress,
            clock=self.clock,
            agreement=self.agreement,
            enter=self.phases.enter,
            on_tuning=self._on_tuning,
        )

    def forget_search(self) -> None:
        """No more is tried: what the search holds, batches among it, is let go of."""
        vars(self).pop("chooser", None)

    @property
    def phase(self) -> Phase:
        """Where the fit is."""
        return self.phases.now

    @property
    def is_length_awaited(self) -> bool:
        """Whether the fit still waits for the end of the epoch that shows an epoch's length."""
        return self._progress.epoch == self._awaited_epoch

    @contextlib.contextmanager
    def own_work(self) -> Iterator[None]:
        """A block of tfaccel's own work: if it fails, the training goes on without it."""
        try:
            yield
        except Exception as error:
            self.give_up(error)

    def decide(self) -> None:
        """Makes the choice; all processes make the same one."""
        choice = error = None
        try:
            self.observed.agree()
            if self.settings.plan is None:
                choice = self.chooser.choose()
        except Exception as raised:
            error = raised
        # Before a plan begins, as it asks for the time, which all processes must do together.
        if self._gave_up(error):
            return
        error = None
        try:
            if choice is not None:
                self._take(choice)
            elif self.settings.plan is not None:
                self.start_given(self.settings.plan)
        except Exception as raised:
            error = raised
        self._gave_up(error)

    def _gave_up(self, error: Exception | None) -> bool:
        """Gives up in all processes if one has failed; returns whether one has."""
        if failed := self.agreement.any(error is not None):
            self.give_up(error or RuntimeError("it failed in another process"))
        return failed

    def _take(self, choice: choose.Choice) -> None:
        """Puts a choice into effect."""
        report = choice.report
        if choice.phase is Phase.RACE:
            assert self.chooser.candidates is not None
            self.races.begin(choice, self.chooser.candidates.left_seconds)
            self.phases.enter(Phase.RACE)
        elif report is None:
            self.phases.enter(Phase.AWAIT_LENGTH)
            self._awaited_epoch = self._progress.epoch
        elif choice.phase is Phase.STAY:
            self.stay(report, choice.waits)
        else:
            self.announcer.announce(report)
            self.waiting.is_expected = choice.waits
            self.start_plan(report.plan, choice.workload, choice.traced)

    def race(self, iterator: Any) -> Any:
        """One step of the training, by the side whose turn it is."""
        logs, contest = self.races.race(iterator)
        if self.phase is Phase.RACE and contest.race.is_decided:
            with self.own_work():
                self._end_race(contest)
        return logs

    def _end_race(self, contest: Contest) -> None:
        """Ends a decided race: the winner runs, or another candidate comes next."""
        chooser, race, failed = self.chooser, contest.race, contest.race.candidate.has_failed
        assert chooser.candidates is not None
        won = not failed and chooser.candidates.has_won(contest.trial, race.race, race.calls)
        self.races.end(contest, won)
        self.phases.enter(Phase.PREDICT)
        choice = (chooser.ended if failed else chooser.go_on)(contest.workload)
        report = choice.report
        if choice.phase is not Phase.RUN or report is None:
            return self._take(choice)
        self.announcer.announce(report)
        self.plan_run.settle(report.speedup)
        self.waiting.is_expected = self.is_decided = True
        self.phases.enter(Phase.RUN)
        self.races.watch(report, race.race if won else None)

    def run(self, iterator: Any) -> Any:
        """One step of the training under the plan, or of a comparison with the original."""
        logs, gain = self.races.run(iterator)
        if gain is not None and self.phase is Phase.RUN:
            with self.own_work():
                self._compared(gain)
        return logs

    def _compared(self, gain: Speedup) -> None:
        """Takes a new comparison with the original step, and drops a plan that is now slower."""
        report = self.announcer.report
        if report is not None:
            self.announcer.report = dataclasses.replace(report, gain=gain)
        if gain.pairs >= LOOKS[0] and gain.high < 1.0:
            note = f"{self.plan_run.plan} was dropped: in this training it is slower ({gain})."
            self.plan_run.forget_failed()
            self.plan_run.drop()
            self.stay(self.observed.untried(note))

    def begin_epoch(self) -> None:
        """An epoch begins."""
        self.waiting.begin_epoch()
        self.plan_run.begin_epoch()
        self.races.begin_epoch()

    def start_given(self, plan: Plan) -> None:
        """Starts the user's plan, without the passes that can't serve this model."""
        workload = self.observed.workload()
        plan = served(plan, workload)
        if plan.is_baseline:
            self.stay()
        else:
            self.start_plan(plan, workload, None)

    def start_plan(self, plan: Plan, workload: Workload, traced: BuiltStep | None) -> None:
        """Runs a plan whose passes all serve from now on, if it can be prepared or was traced."""
        report = self.announcer.report
        hoped = _HOPED_GAIN if report is None else report.speedup
        if self.plan_run.start(plan, workload, traced, hoped):
            self.is_decided = True
            self.phases.enter(Phase.RUN)
            if report is not None:
                self.races.watch(report, None)
        else:
            self.stay()

    def _go_on_for_any_size(self) -> None:
        """Starts the user's plan without the passes that XLA would compile for ever more sizes."""
        why = f"batches come in more than {MOST_SIZES} sizes"
        notices.warn(f"tfaccel stops compiling for each size of a batch: {why}", stacklevel=2)
        with self.own_work():
            self.observed.many_sizes, self.observed.prepared = True, Prepared()
            self.plan_run.drop()
            assert self.settings.plan is not None
            self.start_given(self.settings.plan)

    def stay_for(self, note: str) -> None:
        """Stays with the original step, for a reason that is known before any trial."""
        self.stay(self.observed.untried(note))

    def stay(self, report: Report | None = None, waits: bool = False) -> None:
        """Stays with the original step from now on.

        Args:
            report: gives the reason; None where the present one does, or none is needed.
            waits: whether the next epoch may begin late on account of trials.
        """
        if self.phase is not Phase.STAY:
            self.phases.enter(Phase.STAY)
        self.races.live = None
        self.observed.forget_batches()
        self.waiting.is_expected = waits
        self.stop_unless_needed()
        if report is not None:
            self.is_decided = len(report.trials) > 1
            self.announcer.announce(report)

    def stop_unless_needed(self) -> None:
        """Gives the train function back, unless taken batches or the next epoch's start need it."""
        if not self.observed.has_taken and not self.waiting.is_expected:
            self._dispatcher.give_back()

    def finish(self) -> None:
        """Ends the fit: keeps what later fits may use, and lets go of data and copies."""
        observed = self.observed
        if self.races.contest is not None:
            self._break_off(self.races.contest)
        elif self.announcer.report is None and self.settings.plan is None:
            self.stay_for(f"{len(observed.seconds)} steps are too few to try anything.")
        self.memory.note_trace(max(observed.seconds[:1], default=0.0))
        self.plan_run.finish()
        self.forget_search()
        observed.callbacks = ()
        observed.forget_batches()

    def _break_off(self, contest: Contest) -> None:
        """Ends the fit within a race, which the next fit goes on with, unless a plan has won."""
        won = not self.plan_run.plan.is_baseline
        undecided = self.races.broken_off(self.chooser)
        if won:
            self.announcer.announce(self.chooser.kept_report(contest.workload))
        else:
            self.stay(undecided)
        self.is_decided = won

    def _abandon(self, why: str) -> None:
        """Goes on after a plan failed and its guarded step put the last good state back."""
        report = self.races.note_failure(why, self.chooser)
        if report is not None and not report.plan.is_baseline:
            return notices.warn(f"tfaccel goes on with {report.plan}: {why}", RuntimeWarning, 3)
        self.plan_run.forget_failed()
        self._back_to_original(f"tfaccel goes on with your own step: {why}", RuntimeWarning, report)

    def give_up(self, error: Exception) -> None:
        """Goes on after tfaccel failed outside a step and put back what it had changed."""
        if phases.RAISES and isinstance(error, IllegalTransitionError):
            raise error
        notice = f"tfaccel gave up and left the training as it is: {error_line(error)}"
        report = self.observed.untried(f"It could not be accelerated: {error_line(error)}.")
        self._back_to_original(notice, UserWarning, report)

    def _back_to_original(
        self, notice: str, category: type[Warning], report: Report | None = None
    ) -> None:
        """The one way back to the original step after any failure, with one notice."""
        notices.warn(notice, category, stacklevel=4)
        self.races.forget()
        self.plan_run.drop()
        self.stay(report)
