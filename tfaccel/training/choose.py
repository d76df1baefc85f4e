"""Choosing how a fit goes on: by the cache, by trials, or not at all where nothing would pay."""

import dataclasses
from collections.abc import Callable

from tfaccel.autotune import priors
from tfaccel.autotune.eligibility import too_short
from tfaccel.autotune.expected.candidates import Candidates, refusals
from tfaccel.autotune.expected.expectation import CHECKED_STEPS, Candidate
from tfaccel.autotune.options import Options
from tfaccel.autotune.report import Report
from tfaccel.autotune.search import cheapest_trial_seconds
from tfaccel.autotune.training_trials import TrainingTrials
from tfaccel.autotune.trial import Trial
from tfaccel.autotune.tune_and_cache import keep, known_evidence, known_report, tune_and_cache
from tfaccel.core.plan import Plan
from tfaccel.core.workload import Workload
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.racing import Race
from tfaccel.measure.timing import Clock
from tfaccel.passes.step_batching import is_watched
from tfaccel.steps.compiled_step import BuiltStep, StepFunction
from tfaccel.steps.remembered import Memory, Pending, TooShort
from tfaccel.steps.repeatable import unrepeatable, unrestorable
from tfaccel.steps.worker_agreement import WorkerAgreement
from tfaccel.system import notices
from tfaccel.training.observed import Observed
from tfaccel.training.phases import Phase
from tfaccel.training.progress import Progress


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a fit goes on.

    Attributes:
        phase: RUN, RACE, STAY or AWAIT_LENGTH.
        workload: what it was chosen for.
        report: the plan and the reasons; None in AWAIT_LENGTH and RACE.
        traced: the plan's step, if it is traced already.
        waits: whether trials ran in this fit, so that its next epoch may begin late.
        trial: the check of the candidate to race.
        race: what an earlier fit has measured of it.
    """

    phase: Phase
    workload: Workload
    report: Report | None = None
    traced: BuiltStep | None = None
    waits: bool = False
    trial: Trial | None = None
    race: Race | None = None


@dataclasses.dataclass(kw_only=True)
class PlanChooser:
    """Makes the choices of a fit, in the phases in which no step of the training runs.

    Attributes:
        settings: what the user asked for.
        observed: what the steps have shown.
        baseline: the original step.
        memory: what earlier fits of the compiled model left.
        progress: of the fit.
        clock: seconds, the same in all processes.
        agreement: of the processes that train together.
        enter: called with each phase.
        on_tuning: called with the budget in seconds before trials begin.
        candidates: the search, once there is one.
    """

    settings: Options
    observed: Observed
    baseline: StepFunction
    memory: Memory
    progress: Progress
    clock: Clock
    agreement: WorkerAgreement
    enter: Callable[[Phase], None]
    on_tuning: Callable[[float], None]
    candidates: Candidates | None = dataclasses.field(default=None, init=False)

    def choose(self) -> Choice:
        """Makes the choice. All processes must call this together."""
        self.enter(Phase.PREDICT)
        workload, settings = self.observed.workload(), self.settings
        known = known_report(workload, settings, self.agreement)
        if known is not None:
            choice = self._by_cache(known, workload)
            if choice is not None:
                return choice
        if settings.tuning == "off":
            return self._stay("With tuning='off' nothing is tried.", workload)
        if settings.tuning == "quick":
            return self._by_expectation(workload)
        seconds = settings.budget.seconds(workload)
        least = cheapest_trial_seconds(workload, settings.names)
        if least is None or least > seconds:
            note = too_short(workload, least, seconds, settings.budget.max_seconds)
            return self._without_trials(workload, least, note)
        return self._unrepeatable(workload) or self._by_trials(workload, seconds)

    def _by_expectation(self, workload: Workload) -> Choice:
        """Goes on with the candidate that is expected to pay most, or stays if none is."""
        settings = self.settings
        seconds = settings.budget.seconds(workload)
        steps = workload.steps_to_come
        if steps is None:
            note = too_short(workload, 0.0, seconds, settings.budget.max_seconds)
            return self._without_trials(workload, 0.0, note)
        evidence = known_evidence(settings)
        found = self.candidates or Candidates(workload, settings.names, evidence, seconds)
        found.allow(seconds)
        self.candidates = found
        pending = self.memory.pending(self.observed.element_spec)
        if pending is not None and self._may_race(pending.trial.plan, workload):
            found.trials[:] = pending.trials
            return self._pending(pending, workload)
        first = self._next()
        if first is None:
            return self._without_trials(workload, found.least_seconds(), found.note)
        choice = self._unrepeatable(workload)
        if choice is not None:
            return choice
        found.note = unrestorable(self.baseline, self.observed.replay())
        if settings.reproducible:
            return self._by_kept_batches(workload, first)
        return self.go_on(workload, first)

    def _may_race(self, plan: Plan, workload: Workload) -> bool:
        """Whether a plan of an earlier fit is what this one asks for, and serves it."""
        allowed = not self.settings.reproducible and {*plan.names} <= {*self.settings.considered}
        return allowed and not any(item.unsupported(workload) for item in plan.passes)

    def _pending(self, pending: Pending, workload: Workload) -> Choice:
        """Goes on with a race that an earlier fit was too short for."""
        known = self.memory.step(pending.trial.plan, self.observed.element_spec)
        assert known is not None
        self.observed.prepared.update(known.prepared)
        return Choice(
            Phase.RACE, workload, traced=known.built, trial=pending.trial, race=pending.race
        )

    def go_on(self, workload: Workload, first: Candidate | None = None) -> Choice:
        """Checks candidates until one is faithful and can be raced, or none is expected to pay.

        Args:
            workload: with kept batches.
            first: the candidate to begin with, where it is known.
        """
        found, candidate = self.candidates, first or self._next()
        assert found is not None
        while candidate is not None:
            self.enter(Phase.CHECK)
            with self._bench(workload) as bench:
                trial = found.check(bench, candidate)
                if trial.outcome is Outcome.FASTER:
                    traced = bench.step_function(trial.plan)
                    return Choice(Phase.RACE, workload, traced=traced, waits=True, trial=trial)
            self.enter(Phase.PREDICT)
            candidate = self._next()
        return self.ended(workload)

    def _by_kept_batches(self, workload: Workload, candidate: Candidate | None) -> Choice:
        """As `go_on`, with races on kept batches, from a state that is put back."""
        found = self.candidates
        assert found is not None
        self.enter(Phase.TRIALS)
        self.on_tuning(self.settings.budget.seconds(workload))
        with self._bench(workload) as bench:
            while candidate is not None:
                before = found.plan
                found.try_out(bench, candidate)
                bench.forget(before if found.plan != before else candidate.plan)
                candidate = self._next()
        choice = self.ended(workload, for_good=True)
        if choice.phase is Phase.STAY:
            return choice
        return dataclasses.replace(choice, traced=bench.step_function(found.plan))

    def ended(self, workload: Workload, for_good: bool = False) -> Choice:
        """The choice when nothing more is expected to pay: for now, or for good."""
        found, report = self.candidates, self.kept_report(workload)
        assert found is not None
        if report.plan.is_baseline and self.progress.grows and not for_good:
            return Choice(Phase.AWAIT_LENGTH, workload)
        phase = Phase.STAY if report.plan.is_baseline else Phase.RUN
        return Choice(phase, workload, report, waits=found.have_run)

    def kept_report(self, workload: Workload) -> Report:
        """The report of the search, which is also put into the cache."""
        assert self.candidates is not None
        report = self.candidates.report()
        keep(workload, self.settings, report, self.agreement)
        return report

    def _next(self) -> Candidate | None:
        """The candidate that is expected to pay most, by the chief's evidence."""
        assert self.candidates is not None
        steps = self.observed.agree_on_steps_to_come() or 0
        return self.agreement.same(self.candidates.next(steps))

    def known_too_short(self) -> str:
        """Why nothing can pay, as an earlier fit has shown; empty where something may."""
        settings, workload = self.settings, self.observed.workload()
        steps = workload.steps_to_come
        known = self.memory.too_short(
            settings.names, is_watched(workload), self.observed.element_spec
        )
        if known is None or steps is None:
            return ""
        workload = dataclasses.replace(workload, step_seconds=known.step_seconds)
        seconds = settings.budget.seconds(workload)
        # A plan from the cache costs its trace alone.
        may_be_cached = settings.cache and steps * known.step_seconds > known.trace_seconds
        if may_be_cached or (known.least is not None and known.least <= seconds):
            return ""
        return too_short(workload, known.least, seconds, settings.budget.max_seconds)

    def _by_cache(self, known: Report, workload: Workload) -> Choice | None:
        """Goes on with the plan that won before if it is faithful here; else None.

        The cache knows a loss, a layer or a train_step only by its name, whose code may have
        changed.
        """
        note = "From the cache: this model was tuned on this machine before."
        report = dataclasses.replace(known, tuning_seconds=0.0, note=note, cached=True)
        if known.plan.is_baseline:
            return Choice(Phase.STAY, workload, report)
        traced = self.memory.step(known.plan, self.observed.element_spec)
        needed = 0.0 if traced else _check_seconds(known, workload)
        steps = workload.steps_to_come
        saved = (steps or 0) * workload.step_seconds * (1 - 1 / known.speedup)
        if steps is not None and saved < needed:
            if self.progress.grows:
                return Choice(Phase.AWAIT_LENGTH, workload)
            return self._stay(f"{note} The rest is too short to pay for {known.plan}.", workload)
        if traced:
            return Choice(Phase.RUN, workload, report)
        return self._unrepeatable(workload) or self._checked(known, report, workload)

    def _checked(self, known: Report, report: Report, workload: Workload) -> Choice | None:
        """The cached plan, if it serves here."""
        self.enter(Phase.CHECK)
        with self._bench(workload) as bench:
            trial = bench.check(known.plan, self.clock() + self.settings.budget.max_seconds)
        if trial.outcome is Outcome.FASTER:
            return Choice(Phase.RUN, workload, report, bench.step_function(known.plan), waits=True)
        why = f"tfaccel tunes anew: {known.plan} is in the cache, but does not serve here"
        notices.warn(f"{why}: {trial.reason}", stacklevel=2)
        self.enter(Phase.PREDICT)
        return None

    def _without_trials(self, workload: Workload, least: float | None, note: str) -> Choice:
        """The choice when no trial is expected to pay: for now, or for good."""
        awaited = workload.steps_to_come is None and self.progress.epochs_left > 1
        if awaited or self.progress.grows:
            return Choice(Phase.AWAIT_LENGTH, workload)
        self.memory.note_too_short(
            TooShort(
                self.settings.names,
                is_watched(workload),
                self.observed.element_spec,
                least,
                workload.step_seconds,
                max(workload.first_step_seconds, workload.trace_seconds),
            )
        )
        names, found = self.settings.names, self.candidates
        passes = (item for item, _ in priors.expected(workload, names))
        ended = refusals(workload, passes) if found is None else found.trials
        return Choice(Phase.STAY, workload, self.observed.untried(note, ended))

    def _unrepeatable(self, workload: Workload) -> Choice | None:
        """The choice to stay, with the reason, where no step may be repeated; else None."""
        why = unrepeatable(self.baseline, self.observed.replay())
        return self._stay(why, workload) if why else None

    def _by_trials(self, workload: Workload, seconds: float) -> Choice:
        self.enter(Phase.TRIALS)
        self.on_tuning(seconds)
        note = unrestorable(self.baseline, self.observed.replay())
        with self._bench(workload) as bench:
            report = tune_and_cache(bench, self.settings, note=note)
        if report.plan.is_baseline:
            return Choice(Phase.STAY, workload, report, waits=len(report.trials) > 1)
        return Choice(Phase.RUN, workload, report, bench.step_function(report.plan), waits=True)

    def _bench(self, workload: Workload) -> TrainingTrials:
        return TrainingTrials(
            workload,
            self.baseline,
            self.clock,
            self.settings.tolerance,
            self.agreement,
            self.observed.prepared,
            thorough=self.settings.tuning == "full",
        )

    def _stay(self, note: str, workload: Workload) -> Choice:
        return Choice(Phase.STAY, workload, self.observed.untried(note))


def _check_seconds(known: Report, workload: Workload) -> float:
    """Seconds to take a plan from the cache into use: its trace, and a check of its step."""
    trace = next((t.compile_seconds for t in known.trials if t.plan == known.plan), 0.0)
    return trace + CHECKED_STEPS * workload.step_seconds
