"""How a plan for a loop is chosen: races on its calls, and what is compared."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock
from looped import LOOPS, Loop, Paced, accelerated, assert_alike, path, plain, run

from tfaccel import Outcome
from tfaccel.autotune.comparison.perturb import rounded_inputs
from tfaccel.core.looped import Call, Returned
from tfaccel.core.prior import Prior
from tfaccel.loops.progress import LoopProgress
from tfaccel.training import choose


@dataclasses.dataclass(frozen=True)
class Wrong(Paced):
    name = "paced_wrong"
    factor: float = 1.5


@dataclasses.dataclass(frozen=True)
class Slower(Paced):
    name = "paced_slower"
    seconds: float = 1.2


def test_a_candidate_is_checked_and_raced_on_the_calls_of_the_loop(repeatable):
    loop = Loop(clock=FakeClock())
    step = accelerated(loop, includes=["paced"], steps=60)
    losses = run(step, 60)
    assert path(step) == ["OBSERVE", "PREDICT", "CHECK", "RACE", "PREDICT", "RUN"]
    assert step.plan.names == ("paced",)
    assert step.report.speedup == pytest.approx(4.0, rel=0.01)
    assert_alike(loop, losses, *plain(60))


def test_without_a_length_the_search_waits_until_it_pays(repeatable):
    loop = Loop(clock=FakeClock())
    step = accelerated(loop, includes=["paced"])
    losses = run(step, 80)
    walked = path(step)
    assert walked[:3] == ["OBSERVE", "PREDICT", "AWAIT_LENGTH"]
    assert "AWAIT_LENGTH PREDICT CHECK RACE PREDICT RUN" in " ".join(walked)
    assert walked[-2:] == ["PREDICT", "RUN"]  # asked again at each doubling
    assert step.plan.names == ("paced",)
    assert_alike(loop, losses, *plain(80))


@pytest.mark.parametrize(
    "name, outcome", [("paced_wrong", Outcome.UNFAITHFUL), ("paced_slower", Outcome.SLOWER)]
)
def test_what_is_wrong_or_slower_does_not_run(repeatable, name, outcome):
    loop = Loop(clock=FakeClock())
    step = accelerated(loop, includes=[name], steps=60)
    losses = run(step, 60)
    assert step.report.trials[1].outcome is outcome
    assert step.plan.is_baseline
    assert_alike(loop, losses, *plain(60))


def test_a_reproducible_loop_is_the_original_until_the_choice(repeatable):
    loop = Loop(clock=FakeClock())
    step = accelerated(loop, includes=["paced"], steps=60, reproducible=True)
    losses = run(step, 3)
    assert_alike(loop, losses, *plain(3), exact=True)
    LOOPS[:] = [loop]
    losses += run(step, 57)
    assert path(step) == ["OBSERVE", "PREDICT", "TRIALS", "RUN"]


@pytest.mark.parametrize("tuning, least", [("off", 0), ("full", 1)])
def test_how_far_a_search_may_go(repeatable, tuning, least):
    loop = Loop(clock=FakeClock())
    settings = {"tuning": tuning, "includes": ["paced"], "steps": 100}
    step = accelerated(loop, **settings)
    run(step, 6)
    assert len(step.plan.passes) == least


def test_what_won_is_kept_for_the_next_loop(repeatable, tmp_path):
    for expected in (False, True):
        loop = Loop(clock=FakeClock())
        step = accelerated(loop, includes=["paced"], steps=60, cache_dir=tmp_path)
        run(step, 30)
        assert step.report.cached is expected
        assert step.plan.names == ("paced",)


class Accumulating(Loop):
    """Adds gradients up over three calls, in variables of its own."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.sums = [tf.Variable(tf.zeros(v.shape)) for v in self.model.trainable_variables]
        self.calls = tf.Variable(0)
        self.optimizer.build(self.model.trainable_variables)

    def step(self, x, y):
        if self.clock is not None:
            seconds = self.seconds
            tf.py_function(lambda: self.clock.advance(seconds), [], [])
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self.model(x, training=True) - y) ** 2)
        weights = self.model.trainable_variables
        for total, gradient in zip(self.sums, tape.gradient(loss, weights), strict=True):
            total.assign_add(gradient * self.factor)
        self.calls.assign_add(1)
        if self.calls % 3 == 0:
            self.optimizer.apply([tf.convert_to_tensor(total) for total in self.sums], weights)
            for total in self.sums:
                total.assign(tf.zeros_like(total))
        return {"loss": loss}

    def state(self):
        return [*super().state(), *(np.array(v) for v in [*self.sums, self.calls])]


@pytest.mark.parametrize("name", ["paced", "paced_wrong"])
def test_gradients_that_a_loop_adds_up_are_state_and_are_compared(repeatable, name):
    loop = Accumulating(clock=FakeClock())
    step = accelerated(loop, includes=[name], steps=60)
    losses = run(step, 41)
    assert step.plan.names == (("paced",) if name == "paced" else ())
    other = Accumulating()
    assert_alike(loop, losses, other, run(tf.function(other.step), 41))


def test_steps_to_come_are_those_made_where_nobody_says():
    made = 0
    progress = LoopProgress(lambda: made, None)
    assert progress.steps_to_come is None
    made = 5
    assert progress.steps_to_come == 5 and progress.grows
    epoch, made = progress.epoch, 8
    assert progress.epoch > epoch
    known = LoopProgress(lambda: 5, 20)
    assert (known.steps_to_come, known.grows, known.room) == (15, False, 1)


def test_what_a_step_is_judged_by():
    loss, large = tf.constant(1.0), tf.ones((2, 2))
    assert list(Returned((loss, large, tf.constant(3)))) == ["output 0"]
    assert list(Returned({"a": {"loss": loss}, "n": 1})) == ["a/loss"]
    assert list(Returned([large, None])) == ["output 0"]
    assert Returned(None) == {}


def test_only_the_inputs_of_a_call_are_rounded():
    third = tf.constant([1 / 3])
    for call in (Call((third, third), {}), Call(((third, third),), {})):
        rounded = tf.nest.flatten(rounded_inputs(call, "bfloat16", None))
        assert float(rounded[0][0]) != float(third[0]) and float(rounded[1][0]) == float(third[0])
    rounded = rounded_inputs(Call((), {"x": third, "n": 3}), "bfloat16", None)
    assert float(rounded.kwargs["x"][0]) != float(third[0]) and rounded.kwargs["n"] == 3


def test_a_report_says_that_random_numbers_could_not_be_put_back(monkeypatch):
    monkeypatch.setattr(choose, "unrepeatable", lambda *args: "")
    loop = Loop(clock=FakeClock())
    own = loop.step
    loop.step = lambda x, y: own(x + 1e-9 * tf.random.normal(tf.shape(x)), y)
    step = accelerated(loop, includes=["paced"], steps=60)
    run(step, 30)
    assert step.plan.names == ("paced",)
    assert "RandomStandardNormal" in step.report.note


@dataclasses.dataclass(frozen=True)
class Later(Paced):
    """Worth more, and dearer to get."""

    name = "paced_later"
    seconds: float = 0.05

    def prior(self, workload):
        return Prior(gain=4.0, prepare_seconds=30.0)


def test_a_loop_that_turns_out_longer_looks_for_more(repeatable):
    loop = Loop(clock=FakeClock())
    step = accelerated(loop, includes=["paced", "paced_later"])
    losses = run(step, 60)
    assert step.plan.names == ("paced",)
    LOOPS[:] = [loop]
    losses = run(step, 260)
    assert "paced_later" in step.plan.names
    assert step.report.speedup == pytest.approx(20.0, rel=0.05)
    assert path(step).count("CHECK") == 2 and path(step)[-1] == "RUN"
    assert np.all(np.isfinite([one["loss"] for one in losses]))
    assert int(loop.optimizer.iterations) == 320


@pytest.mark.parametrize(
    ("kind", "name", "runs"),
    [
        (Loop, "paced_wrong", False),
        pytest.param(Accumulating, "paced", True, marks=pytest.mark.slow),
        pytest.param(Loop, "paced", True, marks=pytest.mark.slow),
        pytest.param(Accumulating, "paced_wrong", False, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_recorded_where_no_slot_shows_them(repeatable, kind, name, runs):
    def optimizer():
        return keras.optimizers.RMSprop(0.01)

    loop = kind(optimizer=optimizer(), clock=FakeClock())
    step = accelerated(loop, includes=[name], steps=60)
    losses = run(step, 30)
    assert bool(step.plan.passes) is runs, step.report.reasons()
    other = kind(optimizer=optimizer())
    assert_alike(loop, losses, other, run(tf.function(other.step), 30))
