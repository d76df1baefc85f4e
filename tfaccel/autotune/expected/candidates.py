"""One candidate after the other, as long as another is expected to pay."""

import dataclasses
from collections.abc import Iterable, Sequence

from tfaccel.autotune import priors
from tfaccel.autotune.expected.evidence import Evidence
from tfaccel.autotune.expected.expectation import Candidate, Expectation
from tfaccel.autotune.report import Report
from tfaccel.autotune.search import MOST_REPAIRS, repaired
from tfaccel.autotune.trial import WORTHWHILE, Trial, baseline_trial
from tfaccel.autotune.trial_runner import TrialRunner
from tfaccel.core.plan import Pass, Plan
from tfaccel.core.prior import Prior
from tfaccel.core.workload import Workload
from tfaccel.measure import racing
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Speedup


def refusals(workload: Workload, passes: Iterable[Pass]) -> list[Trial]:
    """The passes that do not serve a workload, as trials that ended at once."""
    asked = ((item, item.unsupported(workload)) for item in passes)
    return [Trial.refused(Plan((item,)), why) for item, why in asked if why is not None]


class Candidates:
    """The search of one training: what was tried, what won, and what may pay next.

    Args:
        workload: with its baseline times and batches.
        names: the passes to consider.
        evidence: what was measured before.
        most_seconds: that the whole search may cost.

    Attributes:
        trials: what was tried, in order.
        spent_seconds: what it has cost so far.
        plan, gain: the plan that won last, and its speedup over the original step.
        note: why nothing more is tried.
    """

    def __init__(
        self,
        workload: Workload,
        names: Iterable[str],
        evidence: Iterable[Evidence],
        most_seconds: float,
    ):
        self.trials: list[Trial] = []
        self.spent_seconds = 0.0
        self.plan, self.gain = Plan(), Speedup()
        self.note = ""
        self._workload = workload
        self._most_seconds = most_seconds
        self._repairs: list[Plan] = []
        self._repaired = 0
        self._expectation = Expectation(workload, self._usable(list(names)), evidence)
        self._baseline = baseline_trial(workload)

    def _usable(self, names: Sequence[str]) -> list[tuple[Pass, Prior]]:
        """The passes that serve; the refusals are trials that ended at once."""
        expected = priors.expected(self._workload, names)
        self.trials += refusals(self._workload, (item for item, _ in expected))
        refused = [trial.plan for trial in self.trials]
        return [(item, prior) for item, prior in expected if Plan((item,)) not in refused]

    @property
    def have_run(self) -> bool:
        """Whether any plan was tried."""
        return any(trial.was_tried for trial in self.trials)

    @property
    def left_seconds(self) -> float:
        """The seconds that may still be spent; 0.0 where a check took longer than that.

        Never negative: a race that wins loses no time, and would end before its gain is known.
        """
        return max(0.0, self._most_seconds - self.spent_seconds)

    def allow(self, most_seconds: float) -> None:
        """Allows the search more seconds, as the training turned out to be longer."""
        self._most_seconds = most_seconds

    def next(self, steps_to_come: int) -> Candidate | None:
        """The plan that is expected to pay most; None where none is.

        Args:
            steps_to_come: of the training.
        """
        left = self.left_seconds
        tried = [trial.plan for trial in self.trials]
        for plan in self._repairs:
            repair = self._expectation.candidate(plan, steps_to_come, self.gain.median)
            if plan not in tried and repair.pays(left):
                return repair
        best = self._expectation.best(steps_to_come, self.gain.median, tried, left)
        if best is None:
            self.note = self._why_not(steps_to_come, tried) or self.note
        return best

    def _why_not(self, steps_to_come: int, tried: Sequence[Plan]) -> str:
        if self.have_run:
            return ""
        likely = self._expectation.best(steps_to_come, self.gain.median, tried, any_cost=True)
        if likely is None:
            return "No pass is expected to make this model faster on this machine."
        return (
            f"The rest of this training is too short to pay for a trial: {likely.plan} may make "
            f"a step {likely.gain:.2f} times as fast, which saves about "
            f"{likely.saved_seconds:.1f} s and takes about {likely.cost_seconds:.1f} s to find "
            f"out; {max(0.0, self._most_seconds):.1f} s may be spent."
        )

    def least_seconds(self) -> float | None:
        """Seconds of the cheapest trial of a plan expected to be faster; None without one."""
        return self._expectation.least_seconds()

    def check(self, bench: TrialRunner, candidate: Candidate) -> Trial:
        """Compares a candidate with the original step; if it fails, a repair may come next."""
        start = bench.clock()
        deadline, ready = start + self.left_seconds, candidate.prepare_seconds
        trial = bench.check(candidate.plan, deadline, ready)
        trial = dataclasses.replace(trial, predicted_gain=candidate.gain)
        self._spend(bench.clock() - start)
        if trial.outcome is not Outcome.FASTER:
            self.take(trial)
        return trial

    def try_out(self, bench: TrialRunner, candidate: Candidate) -> Trial:
        """Tries a candidate on kept batches, race included."""
        start = bench.clock()
        trial = bench.try_plan(candidate.plan, start + self.left_seconds)
        trial = dataclasses.replace(trial, predicted_gain=candidate.gain)
        self._spend(bench.clock() - start)
        self.take(trial)
        return trial

    def has_won(self, trial: Trial, race: racing.Race, calls: int) -> bool:
        """Whether a checked candidate has won its race against the step that ran so far.

        Args:
            trial: its check.
            race: that it had.
            calls: how many steps each turn was.
        """
        outcome, reason = racing.verdict(race.gain, WORTHWHILE, str(self.plan))
        gain = _times(self.gain, race.gain)
        seconds = sorted(race.candidate_seconds)[len(race.candidate_seconds) // 2] / calls
        trial = dataclasses.replace(
            trial, outcome=outcome, reason=reason, step_seconds=seconds, speedup=gain
        )
        self._spend(max(0.0, sum(race.candidate_seconds) - sum(race.baseline_seconds)))
        self.take(trial)
        return outcome is Outcome.FASTER

    def broken_off(self, trial: Trial) -> Report:
        """The report of a search whose training ended in the race of a candidate."""
        reason = "the training ended before it was decided"
        last = dataclasses.replace(trial, outcome=Outcome.UNDECIDED, reason=reason)
        report = self.report()
        return dataclasses.replace(report, trials=(*report.trials, last), complete=False)

    def take(self, trial: Trial) -> None:
        """Learns from a trial that has ended."""
        self.trials.append(trial)
        self._expectation.note(self._baseline, trial)
        if trial.outcome is Outcome.FASTER and trial.speedup is not None:
            self.plan, self.gain = trial.plan, trial.speedup
        plan = repaired(trial, self._workload) if self._repaired < MOST_REPAIRS else None
        if plan is not None:
            self._repaired += 1
            self._repairs.append(plan)

    def _spend(self, seconds: float) -> None:
        self.spent_seconds += seconds

    def report(self) -> Report:
        """The report of the search."""
        return Report(
            trials=(self._baseline, *self.trials),
            plan=self.plan,
            gain=self.gain,
            tuning_seconds=self.spent_seconds,
            note=self.note,
            complete=False,  # another length of training might have paid for more
        )


def _times(before: Speedup, more: Speedup) -> Speedup:
    """The speedup over the original step of a plan that was raced against a faster one."""
    if not before.pairs:
        return more
    return Speedup(
        before.median * more.median,
        before.median * more.low,
        before.median * more.high,
        more.pairs,
    )
