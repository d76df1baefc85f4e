"""`tuning_seconds` is all that a training waits for on account of its tuning."""

import contextlib
import dataclasses
import threading

import keras
import numpy as np
import pytest
from clocks import FakeClock
from keras import layers

import tfaccel
from tfaccel.autotune.training_trials import TrainingTrials
from tfaccel.callbacks import accelerate
from tfaccel.measure import racing, timing
from tfaccel.steps import letting_go
from tfaccel.training import guarded_step, observed, validation
from tfaccel.training.waiting import Waiting


@dataclasses.dataclass(frozen=True)
class Idle(tfaccel.Pass):
    name = "idle_here"

    def unsupported(self, workload):
        return None

    def applied(self, context):
        return contextlib.nullcontext()


@pytest.fixture
def wins(monkeypatch):
    """Whatever is tried is twice as fast."""
    gain = tfaccel.Speedup(2.0, 1.9, 2.1, 6)
    monkeypatch.setattr(timing, "speedup", lambda *_: gain)
    monkeypatch.setattr(racing, "CLEARLY_SLOWER", float("inf"))


@pytest.fixture
def slow(monkeypatch, clock):
    """Leaving a bench takes 7 s, the first step under a plan 2, a collected batch's feeding 1."""
    leave, run, feed = (
        TrainingTrials.__exit__,
        guarded_step.GuardedStep.__call__,
        observed.feed,
    )
    called = []

    def leaving(self, *exception):
        clock.advance(7.0)
        leave(self, *exception)

    def running(self, iterator):
        clock.advance(0.0 if called else 2.0)
        called.append(1)
        return run(self, iterator)

    def feeding(*args):
        clock.advance(1.0)
        return feed(*args)

    monkeypatch.setattr(TrainingTrials, "__exit__", leaving)
    monkeypatch.setattr(guarded_step.GuardedStep, "__call__", running)
    monkeypatch.setattr(observed, "feed", feeding)
    yield called


@pytest.fixture
def clock():
    return FakeClock()


def fit(clock, *others, epochs=1, cache_dir=False, validated=False, verbose=0, **settings):
    settings = (
        {"includes": ["idle_here"]} | {"tuning_share": None, "max_tuning_seconds": 1e6} | settings
    )
    accel = tfaccel.AccelCallback(cache_dir=cache_dir, verbose=verbose, clock=clock, **settings)
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = np.ones((24, 2), "float32"), np.ones((24, 1), "float32")
    data = (x, y) if validated else None
    model.fit(
        x,
        y,
        batch_size=4,
        epochs=epochs,
        verbose=0,
        callbacks=[accel, *others],
        validation_data=data,
    )
    return accel.report


class Late(keras.callbacks.Callback):
    """Some epochs begin late, by so many seconds."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, dict(enumerate(seconds))

    def on_epoch_begin(self, epoch, logs=None):
        self.clock.advance(self.seconds.get(epoch, 0.0))


def test_all_around_trials_counts(clock, slow, wins):
    report = fit(clock)
    assert report.plan.names == ("idle_here",)
    assert report.tuning_seconds == 7.0 + 2.0 + 3 * 1.0


def test_it_counts_where_the_step_stays_as_it_was_too(clock, slow):
    report = fit(clock)
    assert report.plan.is_baseline and len(report.trials) == 2
    assert report.tuning_seconds == 7.0 + 3 * 1.0


@pytest.mark.slow
def test_what_is_told_is_the_whole(clock, slow, wins, monkeypatch):
    told = []
    monkeypatch.setattr(accelerate, "show", lambda report, verbose: told.append(report))
    fit(clock, verbose=1)
    assert [report.tuning_seconds for report in told] == [12.0]


def test_the_check_of_a_plan_from_the_cache_counts(clock, slow, wins, tmp_path):
    fit(clock, cache_dir=tmp_path)
    slow.clear()
    report = fit(clock, cache_dir=tmp_path)
    assert report.cached and report.plan.names == ("idle_here",)
    assert report.tuning_seconds == 7.0 + 2.0 + 3 * 1.0  # it is compared before it trains


@pytest.mark.parametrize("won", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_epoch_that_begins_late_after_trials_counts_once(won, clock, slow, request):
    if won:
        request.getfixturevalue("wins")
    late = Late(clock, [0.5, 4.0, 100.0])
    report = fit(clock, late, epochs=4)
    assert report.tuning_seconds == 7.0 + 2.0 * won + 3 * 1.0 + 3.5


@pytest.mark.slow
def test_late_epochs_without_trials_are_the_user_s(clock, slow):
    report = fit(clock, Late(clock, [0.5, 4.0]), epochs=2, includes=[])
    assert report.tuning_seconds == 3 * 1.0


def test_the_trace_for_validations_counts(clock, wins, monkeypatch):
    build = validation.build_step

    def slowly(*args, **kwargs):
        clock.advance(6.0)
        return build(*args, **kwargs)

    monkeypatch.setattr(validation, "build_step", slowly)
    monkeypatch.setattr(validation.Validation, "begin", _always)
    assert fit(clock, epochs=3, validated=True).tuning_seconds == 6.0


def _always(self, epochs_to_come):
    if self.was_used:
        self.turn = validation.Turn.ALTERNATING


def test_only_what_is_later_than_usual_counts(clock):
    waiting = Waiting(clock)
    found = []
    for expected, seconds in [(False, 1.0), (False, 9.0), (True, 3.0), (False, 9.0)]:
        waiting.is_expected = expected or waiting.is_expected
        waiting.begin_epoch()
        clock.advance(seconds)
        found.append(waiting.begin_steps())
        clock.advance(5.0)
        found.append(waiting.begin_steps())
    assert found == [0, 0, 0, 0, 2.0, 0, 0, 0]
    assert waiting.is_over


def test_iterators_are_destroyed_where_nobody_waits(monkeypatch):
    monkeypatch.setattr(letting_go, "HELD_SECONDS", 0.0)
    gone = {name: threading.Event() for name in ("first", "second")}
    threads = {}

    class Held:
        def __init__(self, name):
            self.name = name

        def __del__(self):
            threads[self.name] = threading.current_thread()
            gone[self.name].set()

    clock = FakeClock()
    letting = letting_go.LettingGo(clock)
    first, second = Held("first"), Held("second")
    letting.hold(first)
    letting.hold(first)
    del first
    clock.advance(60.0)
    letting.hold(second)
    del second
    assert gone["first"].wait(10) and not gone["second"].is_set()
    clock.advance(60.0)
    letting.release()
    letting.release()
    assert gone["second"].wait(10)
    assert threading.main_thread() not in threads.values()


def test_a_short_epoch_s_iterator_is_worth_no_thread(monkeypatch):
    started = []
    monkeypatch.setattr(letting_go.threading, "Thread", lambda **kwargs: started.append(kwargs))
    letting = letting_go.LettingGo(FakeClock())
    letting.hold(object())
    letting.hold(object())
    letting.release()
    assert not started
