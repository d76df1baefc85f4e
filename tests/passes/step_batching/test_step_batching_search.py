"""How several steps in a call are tried and chosen."""

import dataclasses

import keras
import pytest
import tensorflow as tf
from batched_fits import Watching, make_data, make_model, state_after, stock_after
from clocks import FakeClock

import tfaccel
from tfaccel.autotune import search
from tfaccel.autotune.offline import offline_trials
from tfaccel.autotune.plan_cache import workload_key
from tfaccel.core.workload import Workload
from tfaccel.measure import racing, timing
from tfaccel.measure.numerics import Drift
from tfaccel.passes import StepBatching, step_batching
from tfaccel.steps import multi_step

layers = keras.layers
callbacks = keras.callbacks


@pytest.fixture
def slow_is_fast_enough(monkeypatch):
    """A busy machine can take longer for a small step than the pass allows."""
    monkeypatch.setattr(step_batching, "CALL_SECONDS", 1e3)


@pytest.mark.parametrize("wins", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("slow_is_fast_enough")
def test_trials_and_what_they_choose_change_nothing(wins, monkeypatch):
    gain = tfaccel.Speedup(2.0, 1.9, 2.1, 6) if wins else tfaccel.Speedup(0.5, 0.4, 0.6, 6)
    monkeypatch.setattr(timing, "speedup", lambda own, candidate: gain)
    monkeypatch.setattr(racing, "CLEARLY_SLOWER", float("inf"))
    accel = tfaccel.AccelCallback(
        includes=["step_batching"], tuning_share=None, max_tuning_seconds=1e6, verbose=0
    )
    assert state_after(accel) == stock_after()
    assert accel.plan.names == (("step_batching",) if wins else ())
    if wins:
        assert accel.report.trials[1].drift == Drift()


@pytest.mark.usefixtures("slow_is_fast_enough")
def test_a_group_that_is_another_training_is_unfaithful(monkeypatch):
    """It would be found out: here the first of the steps goes missing."""
    run = multi_step.MultiStep.__call__

    def skipping(self, iterator, most):
        if most > 1:
            next(iterator)
        return run(self, iterator, most)

    monkeypatch.setattr(multi_step.MultiStep, "__call__", skipping)
    monkeypatch.setattr(timing, "speedup", lambda own, fast: tfaccel.Speedup(2.0, 1.9, 2.1, 6))
    monkeypatch.setattr(racing, "CLEARLY_SLOWER", float("inf"))
    accel = tfaccel.AccelCallback(
        includes=["step_batching"], tuning_share=None, max_tuning_seconds=1e6, verbose=0
    )
    state_after(accel)
    assert accel.report.trials[1].outcome is tfaccel.Outcome.UNFAITHFUL


def test_both_sides_of_a_trial_make_as_many_steps():
    """On a clock that moves at each reading a turn takes one second, whatever runs in it."""
    model = make_model()
    x, y = make_data(32)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    with offline_trials(model, data, clock=FakeClock(step=1.0)) as bench:
        made = model.optimizer.iterations
        plan, before = tfaccel.Plan((StepBatching(4),)), int(made)
        bench.begin(plan)
        bench.own_calls(4)()
        assert int(made) == before + 4
        assert len(bench.calls(plan, 4)()) == 4
        assert int(made) == before + 8
        assert bench.race(plan, deadline=0.0, fewest=1).baseline_seconds == [1.0]


def test_it_costs_no_probe():
    workload = Workload(make_model(), first_step_seconds=10.0, step_seconds=0.01)
    single = search.trial_seconds(tfaccel.Plan((StepBatching(4),)), workload)
    both = search.trial_seconds(
        tfaccel.Plan((tfaccel.passes.FusedOptimizer(), StepBatching(4))), workload
    )
    assert single == pytest.approx(10.0 * 1.2 + 2 * 6 * 4 * 0.01)
    assert both == pytest.approx(10.0 * (2 * 1.2 + 1) + 2 * 6 * 4 * 0.01)


def test_one_pass_is_tried_where_the_budget_is_short_of_all():
    """All three would cost 96 s, two at least 30, one 12."""
    x, y = make_data(32)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    with offline_trials(make_model(), data, clock=FakeClock(step=1e-3)) as bench:
        bench.workload = dataclasses.replace(
            bench.workload, first_step_seconds=10.0, step_seconds=0.001
        )
        names = ("fused_optimizer", "xla", "step_batching")
        report = search.tune_workload(bench.workload, bench, names, 25.0)
    assert report.trials[1].plan.names == ("step_batching",)
    assert not report.complete


def test_another_callback_is_another_key_of_the_cache():
    def key(*watching):
        workload = Workload(
            make_model(), batches=(make_data(8),), element_spec=(), callbacks=watching
        )
        return workload_key(workload, ("step_batching",), None)

    assert key() == key(callbacks.EarlyStopping()) != key(Watching())
