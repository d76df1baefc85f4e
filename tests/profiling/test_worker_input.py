"""Which worker waits for its input, and what is advised."""

import types
import unittest.mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock

import tfaccel
from tfaccel.profiling import meter as metering
from tfaccel.profiling import sampling
from tfaccel.profiling.ledger import Ledger
from tfaccel.profiling.live import LiveComparison
from tfaccel.profiling.meter import Meter
from tfaccel.profiling.outcome import facts
from tfaccel.profiling.records import Records
from tfaccel.profiling.sampling import OwnWaits, Sampling, WorkerInput
from tfaccel.profiling.words import verdict
from tfaccel.steps.taken_batches import TakenBatches
from tfaccel.steps.worker_agreement import WorkerAgreement


class TwoWorkers(WorkerAgreement):
    """An agreement with another worker, whose numbers are twice as large."""

    is_alone = False

    def __init__(self, other_is_over=False):
        self._other_is_over = other_is_over

    def each(self, number):
        return [number, 2 * number]

    def any(self, flag):
        return flag or self._other_is_over


class Strategy:
    """One by which an iterator of several workers asks whether any has data left."""

    num_replicas_in_sync = 2

    def __init__(self, clock, meeting_seconds):
        self._clock, self._seconds = clock, meeting_seconds

    def reduce(self, *args):
        self._clock.advance(self._seconds)


def test_waiting_for_other_workers_is_no_waiting_for_ones_own_input():
    clock = FakeClock()
    strategy = Strategy(clock, meeting_seconds=5.0)

    def batches():
        while True:
            clock.advance(2.0)
            strategy.reduce("SUM", 1)
            yield tf.zeros((4, 1))

    class Iterator:
        element_spec = tf.TensorSpec((4, 1))
        made = batches()

        def __next__(self):
            return next(self.made)

    taken = TakenBatches(types.SimpleNamespace(steps_per_execution=1))
    sample, _ = Sampling(clock).take(Iterator(), taken, strategy)
    assert (sample.waited_seconds, sample.own_seconds) == (7.0, 2.0)
    assert "reduce" not in vars(strategy)


def test_handing_batches_on_is_no_part_of_a_step(monkeypatch):
    """Of several workers it takes longer than a small step: a dataset is divided anew."""
    clock = FakeClock()
    feed = sampling.feed

    def slow_feed(*args):
        clock.advance(9.0)
        return feed(*args)

    monkeypatch.setattr(sampling, "feed", slow_feed)
    monkeypatch.setattr(metering, "agreement_of", lambda strategy: TwoWorkers())
    meter, ledger = metered(clock)
    iterator = iter(tf.data.Dataset.range(80).batch(2))
    for _ in range(10):
        meter(iterator)
    assert set(ledger.total.step_seconds) == {1.0}
    assert (meter.own_waits.seconds, meter.sampling.cost_seconds) == (1.0, 18.0)


def test_workers_measure_by_the_calls_that_they_have_made(monkeypatch):
    monkeypatch.setattr(metering, "agreement_of", lambda strategy: TwoWorkers())
    meter, _ = metered(FakeClock())
    iterator = iter(tf.data.Dataset.range(80).batch(2))
    for _ in range(40):
        meter(iterator)
    assert meter.own_waits.batches == 3  # the 8th, 16th and 32nd; the first is no regular one


def metered(clock):
    """A meter of steps of a second, and its ledger."""

    def step(iterator):
        next(iterator)
        clock.advance(1.0)
        return {}

    step.experimental_get_tracing_count = lambda: 1
    function = types.SimpleNamespace(
        own=step, run_own=step, step=step, plan=tfaccel.Plan(), built=None, report=None
    )
    function.is_racing = False
    strategy = tf.distribute.get_strategy()
    model = types.SimpleNamespace(
        steps_per_execution=1, jit_compile=False, distribute_strategy=strategy
    )
    function.taken = TakenBatches(model)
    ledger = Ledger(LiveComparison(None), lambda _: None)
    meter = Meter(function, model, ledger, None, clock)
    meter.begin_epoch(None)
    return meter, ledger


def test_what_all_workers_found():
    waits = OwnWaits()
    assert waits.of_all(TwoWorkers(), reads_all=True) is None  # nothing was measured
    waits.add(1.0, 8.0, 2)
    waits.add(2.0, 4.0, 1)
    found = waits.of_all(TwoWorkers(), reads_all=True)
    assert found == WorkerInput((1.0, 2.0), 8.0, True)
    assert found.shares == (0.125, 0.25)
    assert waits.of_all(WorkerAgreement(), reads_all=True) is None


@pytest.mark.parametrize(
    ("waited", "reads_all", "said"),
    [
        # A step of 60 ms without waiting; the pipeline takes 100 ms a batch.
        (0.04, True, ["Worker 1 waits", "40.0 ms", "auto_shard_policy", "60.0 ms", "2 processes"]),
        # Half of the reading takes longer than the rest of the step.
        (0.09, True, ["auto_shard_policy", "step to 50.0 ms", "10 processes"]),
        # Each makes its own half in a step's time, so the whole takes twice as long to make.
        (0.04, False, ["Worker 1 waits", "4 processes"]),
    ],
)
def test_advice_is_by_what_was_measured(waited, reads_all, said):
    advice = WorkerInput((0.01, waited), 0.1, reads_all).advice
    assert all(words in advice for words in said), advice
    assert ("auto_shard_policy" in advice) == reads_all
    assert "slower than they are" in advice


def test_no_advice_where_the_step_sets_the_pace():
    assert WorkerInput((0.0, 0.019), 0.1, True).advice == ""


def test_all_workers_that_wait_alike_are_not_compared():
    found = WorkerInput((0.05, 0.06, 0.05), 0.1, True)
    assert "Worker 1 waits" in found.advice
    assert "slower than they are" not in found.advice


def test_a_step_that_is_all_waiting_has_no_number_of_processes():
    assert "from processes" in WorkerInput((0.0, 0.2), 0.1, False).advice


def test_the_advice_is_in_the_verdict():
    summary = {"worker_input_advice": "Worker 1 waits.", "input_bound": False}
    records = Records({}, summary=summary)
    assert verdict(records).endswith(" Worker 1 waits.")
    assert facts(records)["worker_input_advice"] == "Worker 1 waits."


def test_one_workers_failure_ends_the_measuring_of_all(monkeypatch):
    """Who measures alone would wait for the others for good."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    profiler = tfaccel.ProfilerCallback(verbose=0)
    over = TwoWorkers(other_is_over=True)
    monkeypatch.setattr("tfaccel.callbacks.profiler.agreement_of", lambda strategy: over)
    model.fit(np.ones((8, 2)), np.ones(8), batch_size=2, verbose=0, callbacks=[profiler])
    assert profiler.summary()["steps"] == 0


def test_a_chief_that_cannot_write_goes_on_to_measure(monkeypatch, tmp_path):
    monkeypatch.setattr("tfaccel.profiling.profile.agreement_of", lambda strategy: TwoWorkers())
    monkeypatch.setattr(metering, "agreement_of", lambda strategy: TwoWorkers())
    full = unittest.mock.Mock(return_value=False)
    monkeypatch.setattr("tfaccel.profiling.records.JsonLines.write", full)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    profiler = tfaccel.ProfilerCallback(tmp_path, verbose=0)
    model.fit(np.ones((8, 2)), np.ones(8), batch_size=2, verbose=0, callbacks=[profiler])
    assert profiler.summary()["steps"] == 4
