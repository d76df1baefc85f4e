"""Choosing a plan within a budget."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence

from tfaccel.autotune import priors
from tfaccel.autotune.report import Report
from tfaccel.autotune.trial import WORTHWHILE, Trial, baseline_trial
from tfaccel.autotune.trial_runner import TrialRunner
from tfaccel.core.plan import Pass, Plan
from tfaccel.core.standalone import StandalonePass, stands_alone
from tfaccel.core.workload import Workload
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.racing import FEWEST, LOOKS, verdict
from tfaccel.measure.timing import Speedup

# Trials in a row without a new best plan after which the search ends.
PATIENCE = 4
# The most layers that a search leaves in their own dtype, as they are too far off in 16 bits.
MOST_REPAIRS = 3
# Told about each trial as it ends.
OnTrial = Callable[[Trial], None]


def trial_seconds(plan: Plan, workload: Workload, earlier: Sequence[Trial] = ()) -> float:
    """An estimate of what trying a plan takes if it wins.

    Its trace, one more to look at its gradients, one to look at the baseline's (where
    it changes what is computed), and the timed pairs.

    Args:
        plan: what to try.
        workload: with its baseline times.
        earlier: trials on this workload. They show how long traces take here, most of all
            that of the plan that has most in common with this one, and whether the
            baseline's gradients are known by now.
    """
    first = max(workload.first_step_seconds, workload.trace_seconds)
    trace = first * _compile_factor(plan) * _pace(plan, first, earlier)
    seconds = trace
    if plan.changes_step:
        looked_at = any(t.drift is not None and t.plan.changes_step for t in earlier)
        seconds += trace + (0.0 if looked_at else first)
    return seconds + 2 * LOOKS[0] * plan.steps_per_call * workload.step_seconds


def _compile_factor(plan: Plan) -> float:
    return math.prod(item.compile_factor for item in plan.passes)


def _pace(plan: Plan, first: float, earlier: Sequence[Trial]) -> float:
    """By what factor the trace of the most similar plan took longer than expected."""
    traced = [t for t in earlier if t.plan.passes and t.compile_seconds > 0]
    if not traced or not first:
        return 1.0
    nearest = min(traced, key=lambda trial: len({*trial.plan.names} ^ {*plan.names}))
    return nearest.compile_seconds / (first * _compile_factor(nearest.plan))


def cheapest_trial_seconds(workload: Workload, names: Collection[str]) -> float | None:
    """An estimate of the least that a trial costs; None where there is nothing to try."""
    candidates = [
        trial_seconds(Plan((item,)), workload)
        for item, _ in priors.expected(workload, names)
        if item.unsupported(workload) is None
    ]
    return min(candidates, default=None)


def tune_workload(
    workload: Workload,
    bench: TrialRunner,
    names: Collection[str],
    seconds: float,
    on_trial: OnTrial = lambda trial: None,
    reserve: Collection[str] | None = None,
) -> Report:
    """Tries plans on a workload and chooses one.

    Args:
        workload: the model and its kept batches, with its baseline times.
        bench: the workload set up for trials, entered.
        names: the passes to consider.
        seconds: the budget.
        on_trial: called with each trial.
        reserve: the passes to add to a plan that runs out of memory; None for the
            built-in ones.

    Returns:
        The report. Its first trial is the baseline.
    """
    start = bench.clock()
    spare = priors.reserve_names(None, ()) if reserve is None else reserve
    helpers = [item for item, _ in priors.expected(workload, spare)]
    order = [item.name for item, _ in priors.expected(workload, [*names, *spare])]
    search = _Search(workload, bench, start + seconds, on_trial, helpers, order)
    usable: list[tuple[Pass, bool]] = []
    alone: list[Plan] = []
    for item, prior in priors.expected(workload, names):
        unsupported = item.unsupported(workload)
        if unsupported is not None:
            search.note(Trial.refused(Plan((item,)), unsupported))
        elif isinstance(item, StandalonePass):
            alone += [Plan((one,)) for one in item.variants(workload)]
        else:
            usable.append((item, prior.pays))
    search.run(usable, alone)
    gain = search.confirmed()
    return Report(
        trials=(baseline_trial(workload), *search.trials),
        plan=search.best.plan if search.best else Plan(),
        gain=gain,
        tuning_seconds=bench.clock() - start,
        note=search.ending,
        complete=search.complete,
    )


def one_plan(plan: Plan, workload: Workload, bench: TrialRunner) -> Report:
    """Tries one plan that the user gave; it is chosen if it is faster and faithful.

    Args:
        plan: what to try.
        workload: with its baseline times.
        bench: the workload set up for trials, entered.
    """
    start = bench.clock()
    trial = bench.try_plan(plan)
    won = trial.outcome is Outcome.FASTER
    return Report(
        trials=(baseline_trial(workload), trial),
        plan=plan if won else Plan(),
        gain=(trial.speedup if won else None) or Speedup(),
        tuning_seconds=bench.clock() - start,
    )


class _Search:
    """One walk through the plans: the expected best first, then its variations."""

    def __init__(
        self,
        workload: Workload,
        bench: TrialRunner,
        deadline: float,
        on_trial: OnTrial,
        helpers: Sequence[Pass],
        order: Sequence[str],
    ):
        self.workload = workload
        self.bench = bench
        self.deadline = deadline
        self.on_trial = on_trial
        self.helpers = helpers
        self.order = order
        self.trials: list[Trial] = []
        self.best: Trial | None = None
        self.ending = ""
        self.complete = True
        self.repairs = 0

    def note(self, trial: Trial) -> None:
        self.trials.append(trial)
        self.on_trial(trial)

    def run(self, usable: list[tuple[Pass, bool]], alone: Sequence[Plan] = ()) -> None:
        first = Plan(tuple(item for item, holds in usable if holds))
        queue = [*alone, first, *variations(first, usable)]
        # Where the budget is short of all these, a single pass may fit.
        queue += sorted((Plan((item,)) for item, _ in usable), key=self._seconds)
        seen, without_gain = {Plan()}, 0
        while queue and without_gain < PATIENCE:
            plan = queue.pop(0)
            if plan in seen:
                continue
            seen.add(plan)
            if not self._affordable(plan):
                continue
            if self._try(plan):
                without_gain = 0
                queue = [*variations(plan, usable), *queue]
            else:
                # Passes that stand alone tell nothing about variations of another plan.
                without_gain += not stands_alone(plan)
                queue = [*self._repaired(), *self._with_less_memory(), *queue]

    def _repaired(self) -> Iterator[Plan]:
        """The last plan, with the layer that was too far off left in its own dtype."""
        plan = repaired(self.trials[-1], self.workload) if self.repairs < MOST_REPAIRS else None
        if plan is not None:
            self.repairs += 1
            yield plan

    def _with_less_memory(self) -> Iterator[Plan]:
        """The last plan, with passes that save memory if it ran out of memory."""
        trial = self.trials[-1]
        for item in self.helpers if trial.ran_out_of_memory else ():
            if item.name not in trial.plan.names and not item.unsupported(self.workload):
                items = (*trial.plan.passes, item)
                yield Plan(tuple(sorted(items, key=lambda one: self.order.index(one.name))))

    def _seconds(self, plan: Plan) -> float:
        return trial_seconds(plan, self.workload, self.trials)

    def _affordable(self, plan: Plan) -> bool:
        needed = self._seconds(plan)
        left = self.deadline - self.bench.clock()
        if needed <= left:
            return True
        self.complete = False
        self.ending = (
            f"Not tried for want of time: {plan} (about {needed:.0f} s, {max(left, 0):.0f} s left)."
        )
        return False

    def _try(self, plan: Plan) -> bool:
        """Tries a plan; returns whether it is the new best."""
        trial = self.bench.try_plan(plan, self.deadline - self._confirming_seconds(plan))
        self.note(trial)
        self.complete = self.complete and trial.outcome is not Outcome.UNDECIDED
        if trial.outcome is not Outcome.FASTER or not _better(trial, self.best):
            self.bench.forget(plan)
            return False
        if self.best is not None:
            self.bench.forget(self.best.plan)
        self.best = trial
        return True

    def _confirming_seconds(self, plan: Plan) -> float:
        """The seconds of timing a plan again, which happens only if it is faster."""
        return 2 * FEWEST * plan.steps_per_call * self.workload.step_seconds

    def confirmed(self) -> Speedup:
        """The best plan's speedup, measured anew, as the plan that won partly won by luck.

        A plan that does not clearly win again is dropped for the baseline.
        """
        if self.best is None:
            return Speedup()
        gain = self.bench.time_again(self.best.plan, self.deadline)
        if verdict(gain, WORTHWHILE)[0] is Outcome.FASTER:
            return gain
        self.bench.forget(self.best.plan)
        self.ending = f"{self.best.plan} won once but not when it was measured again."
        self.best = None
        return Speedup()


def repaired(trial: Trial, workload: Workload) -> Plan | None:
    """The plan of a trial with the layer that was too far off left in its own dtype.

    Returns:
        None where no layer's dtype would mend the plan's error.
    """
    if trial.outcome is not Outcome.UNFAITHFUL or trial.drift is None:
        return None
    layer = layer_of(trial.drift.worst, workload)
    spared = tuple((layer and item.sparing(layer)) or item for item in trial.plan.passes)
    return Plan(spared) if spared != trial.plan.passes else None


def layer_of(variable: str, workload: Workload) -> str:
    """The name of the innermost layer with a variable of this path; empty where there is none."""
    for layer in reversed(workload.layers):
        if any(variable == getattr(own, "path", None) for own in layer.variables):
            return str(layer.name)
    return ""


def variations(plan: Plan, usable: list[tuple[Pass, bool]]) -> Iterator[Plan]:
    """A plan with one pass more, then with one less, the last first; none that stands alone."""
    if stands_alone(plan):
        return
    items = [item for item, _ in usable]
    for item in items:
        if item.name not in plan.names:
            wanted = {*plan.names, item.name}
            yield Plan(tuple(other for other in items if other.name in wanted))
    for item in reversed(plan.passes):
        yield plan.without(item.name)


def _better(trial: Trial, best: Trial | None) -> bool:
    """Whether a trial is clearly ahead of the best, or as good with fewer passes."""
    if best is None or best.speedup is None or trial.speedup is None:
        return best is None
    ratio = trial.speedup.median / best.speedup.median
    fewer = len(trial.plan.passes) < len(best.plan.passes)
    return ratio > 1.02 or (fewer and ratio > 0.99)
