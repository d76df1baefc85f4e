"""Fits that come again and again: what the earlier ones left, and what they must not keep."""

import contextlib
import dataclasses
import gc
import threading
import weakref
from typing import ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock
from keras import layers

import tfaccel
from tfaccel.autotune.options import COLLECTED_STEPS
from tfaccel.callbacks import accelerate
from tfaccel.compat import keras_private
from tfaccel.measure import racing, timing
from tfaccel.profiling import profile
from tfaccel.profiling.input_watch import InputWatch
from tfaccel.steps import letting_go, taken_batches
from tfaccel.training import guarded_step


@dataclasses.dataclass(frozen=True)
class Counted(tfaccel.Pass):
    """Changes nothing, and counts the traces of steps."""

    name = "counted"
    traces: ClassVar[list] = []

    def unsupported(self, workload):
        return None

    @contextlib.contextmanager
    def applied(self, context):
        if tf.inside_function():
            self.traces.append(context.workload.model)
            if getattr(context.workload.model, "fails", False):
                raise ValueError("no trace today")
        yield


@pytest.fixture(autouse=True)
def traces():
    Counted.traces.clear()
    yield Counted.traces
    Counted.traces.clear()


def compiled(model):
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    return model


def make_model():
    return compiled(keras.Sequential([keras.Input((4,)), layers.Dense(1)]))


def fit(model, callback, batches=2, dtype="float32"):
    x = np.ones((8 * batches, 4), dtype)
    model.fit(x, x[:, :1], batch_size=8, verbose=0, callbacks=[callback])
    return callback


def given(**settings):
    return tfaccel.AccelCallback(["counted"], verbose=0, **settings)


def auto(**settings):
    settings = {"includes": ["counted"], "cache_dir": False, "verbose": 0} | settings
    return tfaccel.AccelCallback(**settings)


def test_a_given_plan_is_traced_once_whoever_asks_for_it(traces):
    model, one = make_model(), given()
    for callback in (given(), given(), one, one, given()):
        assert fit(model, callback).plan.names == ("counted",)
    assert len(traces) == 1


def test_what_was_traced_trains_as_a_new_trace_does():
    weights = []
    for callbacks in ([given() for _ in range(3)], [tfaccel.AccelCallback("baseline")] * 3):
        keras.utils.set_random_seed(1)
        model = make_model()
        for callback in callbacks:
            fit(model, callback)
        weights.append([v.numpy() for v in [*model.variables, *model.optimizer.variables]])
    for left, right in zip(*weights, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    "change",
    [
        compiled,
        lambda model: keras.utils.clear_session(),
        lambda model: setattr(model, "train_function", None),
    ],
)
def test_a_compiled_model_that_is_no_longer_the_same_is_traced_anew(change, traces):
    model = make_model()
    fit(model, given())
    change(model)
    fit(model, given())
    fit(model, given())
    assert len(traces) == 2


def test_other_data_and_other_plans_have_traces_of_their_own(traces):
    model = make_model()
    for dtype in ("float32", "int32", "float32", "int32"):
        fit(model, given(), dtype=dtype)
    assert len(traces) == 2
    other = tfaccel.AccelCallback(["counted", "fused_optimizer"], verbose=0)
    assert fit(model, other).plan.names == ("counted", "fused_optimizer")
    assert len(traces) == 3


def test_a_step_that_failed_is_not_used_again(traces):
    model = make_model()
    model.fails = True
    with pytest.warns(RuntimeWarning, match="no trace today"):
        fit(model, given())
    model.fails = False
    assert fit(model, given()).plan.names == ("counted",)
    assert len(traces) == 2


@pytest.mark.parametrize("make", [given, auto])
def test_nothing_outlives_its_model(make):
    model = make_model()
    data = tf.data.Dataset.from_tensors((tf.ones((8, 4)), tf.ones((8, 1)))).repeat(6)
    for _ in range(2):
        model.fit(data, verbose=0, callbacks=[make()])
    parts = [model, model.optimizer, model.train_function, data]
    alive = [weakref.ref(part) for part in parts]
    Counted.traces.clear()
    for thread in threading.enumerate():
        if thread.name == letting_go.NAME:
            thread.join()  # it holds the iterator for a second
    del model, data, parts
    gc.collect()
    assert [ref() for ref in alive] == [None] * 4


def test_after_a_fit_a_callback_holds_no_data_and_no_copy_of_the_state(monkeypatch):
    watches = []

    class Noted(InputWatch):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            watches.append(weakref.ref(self))

    monkeypatch.setattr(accelerate, "InputWatch", Noted)
    callback = fit(make_model(), given(), batches=16)
    assert callback.session.built is not None
    assert not callback.session.holds_data
    gc.collect()
    assert [ref() for ref in watches] == [None]


def forbid_collecting(monkeypatch):
    def pull(iterator, count, into=None):
        raise AssertionError("a batch was taken out of the iterator")

    monkeypatch.setattr(taken_batches, "pull", pull)


@pytest.mark.parametrize("fits", [1, 2])
def test_a_fit_of_too_few_steps_collects_nothing(fits, monkeypatch):
    forbid_collecting(monkeypatch)
    model = make_model()
    for _ in range(fits):
        callback = fit(model, auto(), batches=COLLECTED_STEPS)
    assert "too few" in callback.report.note
    # What Keras would trace twice is traced once all the same.
    assert keras_private.trace_counter(model.train_function)() == 1


@pytest.mark.parametrize("same", [True, False])
def test_a_fit_that_is_known_to_be_too_short_collects_nothing(same, monkeypatch):
    model, first = make_model(), auto(clock=FakeClock(step=0.1))
    note = fit(model, first, batches=6).report.note
    assert "too short to pay for a trial" in note
    forbid_collecting(monkeypatch)
    again = first if same else auto(clock=FakeClock(step=0.1))
    assert "too short to pay for a trial" in fit(model, again, batches=6).report.note


def test_a_longer_fit_tries_all_the_same(traces):
    model = make_model()
    fit(model, auto(clock=FakeClock(step=0.1)), batches=6)
    tried = auto(clock=FakeClock(step=0.1), tuning_share=None, max_tuning_seconds=1e6)
    assert len(fit(model, tried, batches=6).report.trials) == 2
    assert traces


@pytest.mark.parametrize("won", [True, False])
def test_a_short_fit_goes_on_with_what_a_long_one_decided(won, monkeypatch, traces):
    gain = tfaccel.Speedup(2.0, 1.9, 2.1, 6) if won else tfaccel.Speedup(0.5, 0.4, 0.6, 6)
    monkeypatch.setattr(timing, "speedup", lambda *_: gain)
    monkeypatch.setattr(racing, "CLEARLY_SLOWER", float("inf"))
    model, callback = make_model(), auto(tuning_share=None, max_tuning_seconds=1e6)
    fit(model, callback, batches=6)
    report, count, ran = callback.report, len(traces), []
    run = guarded_step.GuardedStep.__call__
    monkeypatch.setattr(
        guarded_step.GuardedStep, "__call__", lambda *args: ran.append(1) or run(*args)
    )
    fit(model, callback, batches=2)
    assert callback.report is report and callback.plan.is_baseline is not won
    assert (len(ran), len(traces)) == (2 * won, count)


def test_a_profiler_counts_flops_once_for_each_kind_of_batch(monkeypatch):
    counted, count = [], profile.work_of

    def work_of(model, batch, plan):
        counted.append(plan)
        return count(model, batch, plan)

    monkeypatch.setattr(profile, "work_of", work_of)
    model = make_model()
    summaries = [fit(model, tfaccel.ProfilerCallback(verbose=0)).summary() for _ in range(3)]
    assert len(counted) == 1
    assert len({summary["flops_per_step"] for summary in summaries}) == 1
    compiled(model)
    fit(model, tfaccel.ProfilerCallback(verbose=0))
    assert len(counted) == 2


@pytest.mark.slow
def test_two_hundred_fits_leave_nothing_behind():
    model = make_model()

    def objects(fits):
        for index in range(fits):
            fit(model, (given, auto)[index % 2](), batches=5)
        gc.collect()
        return len(gc.get_objects())

    before = objects(20)
    assert objects(200) - before < 400  # two for each fit
