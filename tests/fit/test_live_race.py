"""Candidates that are raced in the training itself: no step is repeated, none is lost."""

import contextlib
import dataclasses
import functools
import warnings
from typing import ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock
from crossed import with_slow
from early import built_early
from timed import Side

import tfaccel
from tfaccel import Outcome, Plan
from tfaccel.autotune.expected.expectation import Candidate, Expectation
from tfaccel.compat.patching import instance_attribute
from tfaccel.core.prior import Prior
from tfaccel.steps import compiled_step
from tfaccel.training import choose, live_gain
from tfaccel.training.live_gain import LiveGain

OWN_SECONDS = 1.0


class Timed(keras.Sequential):
    """A step takes a second by the clock, unless a pass says otherwise."""

    clock: FakeClock
    seconds = OWN_SECONDS

    def compute_loss(self, *args, **kwargs):
        seconds = self.seconds
        now = seconds if callable(seconds) else lambda clock: seconds
        tf.py_function(lambda: self.clock.advance(now(self.clock)), [], [])
        return super().compute_loss(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class Takes(tfaccel.Pass):
    """A step takes so long, and turns NaN from an iteration on where that is asked for."""

    name = "takes"
    seconds: float = 0.25
    nan_from: int = 10**6

    def unsupported(self, workload):
        return None

    def prior(self, workload):
        return Prior(gain=2.0)

    @contextlib.contextmanager
    def applied(self, context):
        model = context.workload.model
        own = model.compute_loss

        def compute_loss(*args, **kwargs):
            late = model.optimizer.iterations.value >= self.nan_from
            return own(*args, **kwargs) * tf.where(late, np.float32(np.nan), 1.0)

        with (
            instance_attribute(model, "seconds", self.seconds),
            instance_attribute(model, "compute_loss", compute_loss),
        ):
            yield


@dataclasses.dataclass(frozen=True)
class Slow(Takes):
    name = "takes_longer"
    seconds: float = 1.2


@dataclasses.dataclass(frozen=True)
class Fading(Takes):
    """Fast at first, and slow later in the training."""

    name = "takes_more_and_more"
    later: ClassVar[float] = 3.0

    @contextlib.contextmanager
    def applied(self, context):
        pace = instance_attribute(
            context.workload.model, "seconds", lambda clock: 0.25 if clock.now < 30 else self.later
        )
        with pace:
            yield


@dataclasses.dataclass(frozen=True)
class Poisoned(Takes):
    name = "takes_poison"
    nan_from: int = 8


@dataclasses.dataclass(frozen=True)
class Together(Takes):
    name = "takes_together"

    @property
    def steps_per_call(self):
        return 4


@pytest.fixture(autouse=True)
def repeatable(monkeypatch):
    """Steps move the clock in Python, which may be repeated here."""
    monkeypatch.setattr(choose, "unrepeatable", lambda *args: "")
    monkeypatch.setattr(choose, "unrestorable", lambda *args: "")


def make_model(clock=None):
    keras.utils.set_random_seed(1)
    model = Timed([keras.Input((4,)), keras.layers.Dense(1)])
    model.clock = clock or FakeClock()
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    # A loss of its own keeps AccelCallback from making variables before the first step, too.
    return built_early(model)


def data(batches):
    x = np.random.default_rng(0).normal(size=(8 * batches, 4)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(8)


def fit(includes, batches=40, epochs=1, model=None, callbacks=(), **settings):
    model = model or make_model()
    settings = {"tuning_share": 1.0, "cache_dir": False, "verbose": 0} | settings
    accel = tfaccel.AccelCallback(includes=includes, clock=model.clock, **settings)
    model.fit(data(batches), epochs=epochs, verbose=0, callbacks=[accel, *callbacks])
    return model, accel


def state(model):
    return [np.array(v) for v in [*model.variables, *model.optimizer.variables]]


@functools.cache
def stock(batches=40, epochs=1):
    model = make_model()
    model.fit(data(batches), epochs=epochs, verbose=0)
    return model


def path(accel):
    return [phase.name for phase in accel.session.path]


def assert_trained_as(model, other):
    for left, right in zip(state(model), state(other), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7)
    losses = [m.history.history["loss"] for m in (model, other)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize(
    "item, batches, epochs",
    [
        pytest.param("takes", 40, 1, marks=pytest.mark.slow),  # as are the tests below
        ("takes", 7, 6),
        ("takes_together", 80, 1),
        pytest.param("takes_together", 9, 10, marks=pytest.mark.slow),
    ],
)
def test_a_faster_candidate_takes_over_and_no_batch_is_lost(item, batches, epochs):
    model, accel = fit([item], batches, epochs)
    assert path(accel) == ["OBSERVE", "PREDICT", "CHECK", "RACE", "PREDICT", "RUN"]
    assert accel.plan.names == (item,)
    assert accel.report.speedup == pytest.approx(4.0, rel=0.01)
    assert accel.report.trials[1].predicted_gain == pytest.approx(2.0)
    assert_trained_as(model, stock(batches, epochs))


def test_its_steps_are_those_of_the_training():
    """Beside the check, the clock moves by no step that the training does not make."""
    model, accel = fit(["takes"], 40)
    steps = 40 - 6 * OWN_SECONDS / OWN_SECONDS
    least = 3 * OWN_SECONDS + 6 * OWN_SECONDS + (40 - 9) * 0.25
    assert least <= model.clock.now < least + 12 * OWN_SECONDS
    assert accel.report.tuning_seconds < 12 * OWN_SECONDS
    assert steps > 0


@pytest.mark.parametrize("item", with_slow(["takes", "takes_together"], ["takes_together"]))
def test_a_plan_is_compared_while_it_runs(item, monkeypatch):
    monkeypatch.setattr(live_gain, "LIVE_SHARE", 0.5)
    steps = 80 if item == "takes" else 240
    model, accel = fit([item], steps)
    assert accel.report.gain.pairs > 6
    assert accel.report.speedup == pytest.approx(4.0, rel=0.01)
    assert_trained_as(model, stock(steps))


def test_a_plan_that_is_slower_later_is_dropped(monkeypatch):
    monkeypatch.setattr(live_gain, "LIVE_SHARE", 0.5)
    model, accel = fit(["takes_more_and_more"], 250, tuning_share=0.1)
    assert path(accel)[-2:] == ["RUN", "STAY"]
    assert accel.plan.is_baseline
    assert "was dropped" in accel.report.note
    assert_trained_as(model, stock(250))


def test_a_slower_candidate_costs_little_and_is_dropped():
    model, accel = fit(["takes_longer"], 60)
    assert path(accel) == ["OBSERVE", "PREDICT", "CHECK", "RACE", "PREDICT", "STAY"]
    assert accel.report.trials[1].outcome is Outcome.SLOWER
    assert accel.plan.is_baseline
    assert model.clock.now < 60 * OWN_SECONDS + 15
    assert_trained_as(model, stock(60))


def test_a_candidate_that_fails_in_its_race_loses_nothing():
    with pytest.warns(RuntimeWarning, match="non-finite"):
        model, accel = fit(["takes_poison"], 40)
    assert path(accel)[-2:] == ["RACE", "STAY"]
    assert accel.plan.is_baseline
    assert_trained_as(model, stock(40))


def test_a_fit_that_ends_in_a_race_leaves_it_to_the_next(monkeypatch):
    model = make_model()
    _, accel = fit(["takes_together"], 30, model=model)
    assert path(accel)[-2:] == ["RACE", "STAY"]
    assert accel.report.trials[-1].outcome is Outcome.UNDECIDED
    built = []
    build = compiled_step.build_step
    monkeypatch.setattr(compiled_step, "build_step", lambda *a, **k: built.append(1) or build(*a))
    _, again = fit(["takes_together"], 60, model=model)
    assert path(again) == ["OBSERVE", "PREDICT", "RACE", "PREDICT", "RUN"]
    assert not built


def test_a_race_is_not_gone_on_with_by_a_fit_that_leaves_its_pass_out():
    model = make_model()
    fit(["takes_together"], 30, model=model)
    _, again = fit(["takes_longer"], 60, model=model)
    assert {name for t in again.report.trials for name in t.plan.names} == {"takes_longer"}


def test_a_fit_that_ends_in_a_second_race_leaves_the_plan_that_won(monkeypatch):
    plans = iter([Plan((Takes(),)), Plan((Together(),))])
    monkeypatch.setattr(
        Expectation,
        "best",
        lambda *args, **kwargs: next((Candidate(p, 2.0, 0.0, 1e6) for p in plans), None),
    )
    model = make_model()
    _, accel = fit(["takes", "takes_together"], 40, model=model)
    assert path(accel)[-4:] == ["RACE", "PREDICT", "CHECK", "RACE"]
    assert accel.report.plan.names == accel.plan.names == ("takes",)
    model.fit(data(10), verbose=0, callbacks=[accel])
    assert path(accel) == ["OBSERVE", "RUN"] and accel.plan.names == ("takes",)
    assert int(model.optimizer.iterations) == 50


def test_nothing_is_tried_that_would_not_pay():
    model, accel = fit(["takes"], 8)
    assert path(accel) == ["OBSERVE", "PREDICT", "STAY"]
    assert model.clock.now == 8 * OWN_SECONDS


def test_tuning_off_tries_nothing():
    model, accel = fit(["takes"], 40, tuning="off")
    assert path(accel) == ["OBSERVE", "PREDICT", "STAY"]
    assert model.clock.now == 40 * OWN_SECONDS


def test_a_reproducible_choice_is_made_on_kept_batches():
    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            states.append((self.model.clock.now, state(self.model)))

    states = []
    model, accel = fit(["takes"], 40, reproducible=True, callbacks=[Watch()])
    assert path(accel) == ["OBSERVE", "PREDICT", "TRIALS", "RUN"]
    assert accel.plan.names == ("takes",)
    states_there, states = states, []
    plain = make_model()
    plain.fit(data(40), verbose=0, callbacks=[Watch()])
    for (_, here), (_, there) in zip(states_there[:3], states[:3], strict=True):
        for left, right in zip(here, there, strict=True):
            np.testing.assert_array_equal(left, right)
    assert_trained_as(model, plain)


@pytest.mark.parametrize(
    "settings", [{"tuning": "slow"}, {"reproducible": 1}, {"tuning": True}, {"tuning": 3}]
)
def test_wrong_settings_are_told(settings):
    with pytest.raises((TypeError, ValueError), match=f"`{next(iter(settings))}` must be"):
        tfaccel.AccelCallback(**settings)


@pytest.mark.parametrize("calls", [1, 8])
def test_comparisons_cost_a_hundredth_of_the_time(calls):
    clock = FakeClock()
    own, plan = Side(clock, 2.0), Side(clock, 1.0)
    live = LiveGain(
        own,
        plan,
        clock,
        race=None,
        steps_per_call=calls,
        step_seconds=2.0,
        gain=2.0,
        room=lambda: 1000,
    )
    steps = 60 * 100 * calls
    for _ in range(steps):
        live(None)
    assert live.gain.median == pytest.approx(2.0)
    assert live.gain.pairs == 12  # the latest ones
    assert clock.now <= 1.01 * steps


def test_no_warning_is_given_on_the_way():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        _, accel = fit(["takes"], 20)
    assert accel.plan.names == ("takes",)


def test_another_speed_up_than_was_told_is_told(monkeypatch, capsys):
    monkeypatch.setattr(live_gain, "LIVE_SHARE", 0.5)
    monkeypatch.setattr(Fading, "later", 0.5)
    fit(["takes_more_and_more"], 160, verbose=1)
    shown = capsys.readouterr().out
    assert "4.00x" in shown
    assert "under the plan were 2.00x" in shown


@pytest.mark.parametrize(
    "second", [Poisoned(nan_from=16), pytest.param(Slow(), marks=pytest.mark.slow)], ids=str
)
def test_a_challenger_that_fails_or_loses_leaves_the_plan_that_won(second, monkeypatch):
    plans = iter([Plan((Takes(),)), Plan((second,))])
    monkeypatch.setattr(
        Expectation,
        "best",
        lambda *args, **kwargs: next((Candidate(p, 2.0, 0.0, 1e6) for p in plans), None),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, accel = fit(["takes", second.name], 120)
    told = [str(w.message) for w in caught if w.category is RuntimeWarning]
    failed = isinstance(second, Poisoned)
    assert len(told) == failed and all("goes on with takes: " in line for line in told)
    outcome = Outcome.FAILED if failed else Outcome.SLOWER
    assert accel.report.trials[-1].outcome is outcome
    assert path(accel)[-4:] == ["CHECK", "RACE", "PREDICT", "RUN"]
    assert accel.plan.names == accel.report.plan.names == ("takes",)
    assert_trained_as(model, stock(120))
