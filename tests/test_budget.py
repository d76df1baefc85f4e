"""The seconds that tuning may take are a bound, whatever a candidate turns out to be like."""

import contextlib
import dataclasses

import keras
import pytest
import tensorflow as tf
from clocks import FakeClock
from keras import layers

import tfaccel
from tfaccel import Outcome, Plan
from tfaccel.autotune import offline, search
from tfaccel.autotune.offline import offline_trials
from tfaccel.autotune.trial import Trial
from tfaccel.compat.patching import instance_attribute
from tfaccel.core.prior import Prior
from tfaccel.core.workload import Workload
from tfaccel.measure.numerics import Drift

OWN_SECONDS = 0.1


def takes(clock, seconds):
    """An operation that moves the clock each time it runs."""
    tf.py_function(lambda: clock.advance(seconds), [], [])


class Timed(keras.Sequential):
    """Its steps take a tenth of a second each."""

    def compute_loss(self, *args, **kwargs):
        takes(self.clock, OWN_SECONDS)
        return super().compute_loss(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class Slower(tfaccel.Pass):
    """A step takes so many seconds more."""

    name = "slower_by"
    seconds: float = 0.0
    steps: int = 1

    def unsupported(self, workload):
        return None

    @property
    def steps_per_call(self):
        return self.steps

    @contextlib.contextmanager
    def applied(self, context):
        model = context.workload.model
        compute_loss = model.compute_loss

        def slow(*args, **kwargs):
            takes(model.clock, self.seconds)
            return compute_loss(*args, **kwargs)

        with instance_attribute(model, "compute_loss", slow):
            yield


@pytest.fixture
def bench(monkeypatch):
    # Steps move the clock in Python, which may be repeated here.
    monkeypatch.setattr(offline, "unrepeatable", lambda *args: "")
    clock = FakeClock()
    model = Timed([keras.Input((2,)), layers.Dense(1)])
    model.clock = clock
    model.compile("sgd", "mse")
    data = tf.data.Dataset.from_tensors((tf.ones((4, 2)), tf.ones((4, 1)))).repeat(3)
    with offline_trials(model, data, clock=clock) as bench:
        assert bench.workload.step_seconds == pytest.approx(OWN_SECONDS)
        yield bench


@pytest.mark.parametrize("steps", [1, 32])
def test_a_candidate_that_is_far_slower_runs_single_steps(bench, steps):
    start = bench.clock()
    trial = bench.try_plan(Plan((Slower(seconds=30.0, steps=steps),)), start + 1000.0)
    assert trial.outcome is Outcome.STOPPED
    assert trial.step_seconds == pytest.approx(30.0 + OWN_SECONDS)
    # The one that is traced, the one that is timed, and its second chance.
    assert bench.clock() - start < 4 * 30.0


def test_no_second_chance_is_given_that_would_end_too_late(bench):
    start = bench.clock()
    trial = bench.try_plan(Plan((Slower(seconds=30.0),)), start + 70.0)
    assert trial.outcome is Outcome.STOPPED
    assert bench.clock() - start < 70.0


def test_timing_ends_in_time(bench):
    start = bench.clock()
    trial = bench.try_plan(Plan((Slower(seconds=0.01, steps=8),)), start + 3.0)
    assert (trial.outcome, trial.speedup) == (Outcome.UNDECIDED, None)
    assert bench.clock() - start <= 3.0


def test_a_search_whose_last_plan_was_not_decided_in_time_is_not_complete(bench, monkeypatch):
    plan = Plan((Slower(seconds=0.01, steps=8),))
    monkeypatch.setattr(
        search.priors, "expected", lambda workload, names: [(plan.passes[0], Prior(pays=True))]
    )
    monkeypatch.setattr(search, "trial_seconds", lambda *_: 0.0)
    report = search.tune_workload(bench.workload, bench, ["slower_by"], 6.0, reserve=())
    assert [trial.outcome for trial in report.trials[1:]] == [Outcome.UNDECIDED]
    assert not report.complete


def test_a_plan_that_can_t_be_compared_in_time_is_not_chosen(bench, monkeypatch):
    monkeypatch.setattr(
        tfaccel.measure.timing, "speedup", lambda *_: tfaccel.Speedup(2.0, 1.9, 2.1, 6)
    )
    bench.workload = dataclasses.replace(bench.workload, step_seconds=5.0)
    trial = bench.try_plan(Plan((Slower(),)), bench.clock() + 40.0)
    assert trial.outcome is Outcome.UNDECIDED
    assert trial.drift is None


def test_several_steps_in_a_call_are_judged_by_many_where_one_alone_is_slow(bench):
    """What lies around a call takes as long as five steps here."""
    plan = Plan((Slower(steps=32),))
    run = bench.calls

    def calls(plan, count):
        return lambda: (bench.clock.advance(5 * OWN_SECONDS), run(plan, count)())[1]

    bench.calls = calls
    assert bench.try_plan(plan).outcome is Outcome.SLOWER  # timed, and not stopped


def traced(names, seconds, drift=None):
    items = [
        {"xla": tfaccel.passes.XLA, "fused_optimizer": tfaccel.passes.FusedOptimizer}[n]()
        for n in names
    ]
    return Trial(Plan(tuple(items)), Outcome.SLOWER, compile_seconds=seconds, drift=drift)


def test_the_cost_of_a_trial_is_learned_from_earlier_ones():
    workload = Workload(keras.Sequential([layers.Dense(1)]), first_step_seconds=1.0)
    plain, xla = (traced([name], 0.0).plan for name in ("fused_optimizer", "xla"))
    both = traced(["fused_optimizer", "xla"], 0.0).plan
    guess = {p: search.trial_seconds(p, workload) for p in (plain, xla, both)}
    factor = tfaccel.passes.XLA.compile_factor
    earlier = [traced(["xla"], 10.0 * factor), traced(["fused_optimizer"], 1.0)]
    learned = {p: search.trial_seconds(p, workload, earlier) for p in (plain, xla, both)}
    assert learned[plain] == guess[plain]
    assert learned[xla] == pytest.approx(10.0 * (guess[xla] - 1.0) + 1.0)
    assert learned[both] > 5 * guess[both]
    # The baseline's own gradients are looked at once.
    compared = [traced(["fused_optimizer"], 1.0, Drift())]
    assert search.trial_seconds(plain, workload, compared) == guess[plain] - 1.0
