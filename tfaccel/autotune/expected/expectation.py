"""What plans are expected to win and to cost, by earlier measurements.

The logarithm of a plan's gain is modelled as a sum of terms, one for each pass and one for each
pair of passes. They are fitted to the evidence by weighted least squares, drawn towards each pass's
own prior (ridge regression): the prior stands where nothing similar was measured, and trials of
this training count most. The cost of a trace is fitted in the same way.

Source: Hoerl and Kennard, Ridge Regression, Technometrics 12 (1970).
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tfaccel.autotune.comparison.traced_observer import hides_gradients
from tfaccel.autotune.expected.evidence import Evidence, evidence_of
from tfaccel.autotune.expected.layer_mix import layer_mix
from tfaccel.autotune.report import Report
from tfaccel.autotune.trial import Trial
from tfaccel.core.machine_class import MachineClass
from tfaccel.core.plan import Pass, Plan
from tfaccel.core.prior import Prior
from tfaccel.core.workload import Workload
from tfaccel.measure.outcome import Outcome

# The weights of a pass's prior and of a trial in this very training, where a measurement of the
# same model on the same machine has 1.
_PRIOR_WEIGHT, _OWN_WEIGHT = 0.3, 20.0
# Likewise, the weight of the prior that two passes do not affect each other.
_PAIR_WEIGHT, _BETWEEN = 3.0, " with "
# The steps of a check, beside its trace: two of the candidate, one to three of the original, and
# as long again for copies of the state.
CHECKED_STEPS = 6
# Traces of a check that records gradients: the plan's step, and both steps once more.
_RECORDED_TRACES = 3
# The factor of every later trace, beside those of its passes: the first step of a fit also makes
# variables and threads, and readies TensorFlow's kernels.
_TRACE, _LATER_TRACE = "", 0.5
# A plan is tried only if it is expected to be faster than the present one by this factor.
_WORTH_A_LOOK = 1.03


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A plan that is expected to pay.

    Attributes:
        plan: what to try.
        gain: the speedup over the original step that is expected.
        cost_seconds: that a trial is expected to take.
        saved_seconds: that it is expected to save over the rest of the training, cost aside.
        prepare_seconds: that its passes may take to get ready.
    """

    plan: Plan
    gain: float
    cost_seconds: float
    saved_seconds: float
    prepare_seconds: float = 0.0

    @property
    def net_seconds(self) -> float:
        """The seconds that are expected to be won in all."""
        return self.saved_seconds - self.cost_seconds

    def pays(self, most_seconds: float) -> bool:
        """Whether a trial is expected to pay, and costs no more than these seconds."""
        return self.cost_seconds < min(self.saved_seconds, most_seconds)


class Expectation:
    """What is expected of plans on one workload.

    Args:
        workload: with its baseline times and batches.
        usable: the passes that serve it, in order, each with its prior.
        evidence: what was measured before.
    """

    def __init__(
        self,
        workload: Workload,
        usable: Sequence[tuple[Pass, Prior]],
        evidence: Iterable[Evidence] = (),
    ):
        self._workload = workload
        self._usable = list(usable)
        self._machine, self._mix = MachineClass.of(workload.device), layer_mix(workload)
        self._evidence = [(one, one.weight(self._machine, self._mix)) for one in evidence]
        self._unfaithful: set[Plan] = set()
        self._fit()

    def note(self, baseline: Trial, trial: Trial) -> None:
        """Takes a trial of this training into account."""
        for one in evidence_of(Report((baseline, trial), Plan()), self._machine, self._mix):
            self._evidence.append((one, _OWN_WEIGHT))
        if trial.outcome is Outcome.UNFAITHFUL and trial.drift and trial.drift.worst:
            self._unfaithful.add(_computed(trial.plan))
        self._fit()

    def gain(self, plan: Plan) -> float:
        """The speedup over the original step that is expected of a plan."""
        return math.exp(sum(self._gains.get(term, 0.0) for term in _terms(plan.names)))

    def trace_seconds(self, plan: Plan) -> float:
        """The seconds that the first step under a plan is expected to take."""
        workload = self._workload
        own = max(workload.first_step_seconds, workload.trace_seconds)
        return own * math.exp(sum(self._traces.get(name, 0.0) for name in (_TRACE, *plan.names)))

    def cost_seconds(self, plan: Plan) -> float:
        """The seconds of checking a plan; its race costs next to nothing."""
        looked_at = CHECKED_STEPS * self._workload.step_seconds
        return self._checks * self.trace_seconds(plan) + looked_at + self._prepare_seconds(plan)

    def _prepare_seconds(self, plan: Plan) -> float:
        return sum(prior.prepare_seconds for item, prior in self._usable if item in plan.passes)

    def candidate(self, plan: Plan, steps_to_come: int, present_gain: float = 1.0) -> Candidate:
        """What is expected of a plan.

        Args:
            plan: any of the usable passes.
            steps_to_come: of the training.
            present_gain: how many times faster than the original the present step is.
        """
        seconds, gain = steps_to_come * self._workload.step_seconds, self.gain(plan)
        saved = seconds * (1 / present_gain - 1 / gain)
        ready = self._prepare_seconds(plan)
        return Candidate(plan, gain, self.cost_seconds(plan), saved, ready)

    def best(
        self,
        steps_to_come: int,
        present_gain: float = 1.0,
        tried: Iterable[Plan] = (),
        most_seconds: float = math.inf,
        any_cost: bool = False,
    ) -> Candidate | None:
        """The plan with the largest expected saving, less its cost; None where nothing pays.

        Args:
            steps_to_come: of the training.
            present_gain: how many times faster than the original the present step is.
            tried: plans that are not tried again.
            most_seconds: that a trial may cost.
            any_cost: the best of those that are expected to be faster, whether it pays or not.
        """
        known = set(tried)
        found = (
            self.candidate(plan, steps_to_come, present_gain)
            for plan in self._plans()
            if plan not in known
        )
        faster = (one for one in found if one.gain > _WORTH_A_LOOK * present_gain)
        paying = (one for one in faster if any_cost or one.pays(most_seconds))
        return max(paying, key=lambda one: one.net_seconds, default=None)

    def least_seconds(self) -> float | None:
        """Seconds of the cheapest trial of a plan expected to be faster; None without one."""
        faster = (plan for plan in self._plans() if self.gain(plan) > _WORTH_A_LOOK)
        return min(map(self.cost_seconds, faster), default=None)

    def _plans(self) -> Iterable[Plan]:
        items = [item for item, _ in self._usable]
        for count in range(1, len(items) + 1):
            for chosen in itertools.combinations(items, count):
                plan = Plan(chosen)
                if _computed(plan) not in self._unfaithful:
                    yield plan

    def _fit(self) -> None:
        # Computed once, and not for each of some hundred plans.
        self._checks = _RECORDED_TRACES if hides_gradients(self._workload) else 1
        priors = {item.name: prior.expected_gain for item, prior in self._usable}
        traces = {item.name: item.compile_factor for item, _ in self._usable}
        traces[_TRACE] = _LATER_TRACE
        self._gains = _fitted(
            [(_terms(one.passes), one.gain, weight) for one, weight in self._evidence], priors
        )
        self._traces = _fitted(
            [
                ((_TRACE, *one.passes), one.trace, weight)
                for one, weight in self._evidence
                if one.trace
            ],
            traces,
        )


def _computed(plan: Plan) -> Plan:
    """The passes that decide losses and gradients: the others cannot mend what is off in these."""
    return Plan(tuple(item for item in plan.passes if item.serves_validation))


def _terms(names: Sequence[str]) -> list[str]:
    """The terms of a plan's gain: one for each pass, and one for each pair of passes.

    Kernels, for one, win more in 16 bits, where TensorFlow's own are at their slowest.
    """
    return [*names, *(_BETWEEN.join(pair) for pair in itertools.combinations(sorted(names), 2))]


def _fitted(
    measured: Sequence[tuple[Sequence[str], float, float]], priors: Mapping[str, float]
) -> dict[str, float]:
    """The logarithm of each term's factor.

    Args:
        measured: terms together, the factor of all of them, how much it counts.
        priors: the factor of each term alone, before anything is measured; 1 where none is given.
    """
    names = sorted({*priors, *(name for terms, _, _ in measured for name in terms)})
    start = np.array([math.log(priors.get(name, 1.0)) for name in names])
    rows = np.array([[name in terms for name in names] for terms, _, _ in measured], float)
    if not len(rows):
        return dict(zip(names, start.tolist(), strict=True))
    weights = np.array([weight for _, _, weight in measured])
    apart = np.log([factor for _, factor, _ in measured]) - rows @ start
    kept = np.array([_PAIR_WEIGHT if _BETWEEN in name else _PRIOR_WEIGHT for name in names])
    squares = rows.T @ (weights[:, None] * rows) + np.diag(kept)
    found = start + np.linalg.solve(squares, rows.T @ (weights * apart))
    return dict(zip(names, found.tolist(), strict=True))
