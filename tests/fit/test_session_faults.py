"""What a user sees of a `fit` with AccelCallback when a pass, a batch or a callback fails."""

import contextlib
import dataclasses
import functools
import gc
import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from short_fits import Serving, assert_same, let_win, make_data, make_model, state, trained

import tfaccel
from tfaccel.autotune import trial
from tfaccel.compat.patching import instance_attribute

layers = keras.layers


@dataclasses.dataclass(frozen=True)
class Poison(Serving):
    """The loss is NaN from the given optimizer iteration on."""

    name = "poison"
    iteration: int = 30

    @contextlib.contextmanager
    def applied(self, context):
        model = context.workload.model
        original = model.compute_loss

        def compute_loss(*args, **kwargs):
            late = tf.cast(model.optimizer.iterations.value >= self.iteration, tf.float32)
            return original(*args, **kwargs) * tf.where(late > 0, np.float32(np.nan), 1.0)

        with instance_attribute(model, "compute_loss", compute_loss):
            yield


@dataclasses.dataclass(frozen=True)
class Failing(Serving):
    """Cannot be traced."""

    name = "failing"
    error: str = "ValueError"

    @contextlib.contextmanager
    def applied(self, context):
        if tf.inside_function():
            raise {"ValueError": ValueError, "KeyboardInterrupt": KeyboardInterrupt}[self.error](
                "this pass always fails"
            )
        yield


@functools.cache
def stock_state():
    """What Keras by itself comes to; several tests compare with the same training."""
    return state(trained())


def test_a_plan_that_can_t_be_traced_costs_nothing():
    with pytest.warns(RuntimeWarning, match="goes on with your own step.*this pass always fails"):
        model = trained([tfaccel.AccelCallback(["failing"])])
    assert_same(state(model), stock_state())


def test_a_failing_candidate_is_an_outcome():
    accel = tfaccel.AccelCallback(
        includes=["failing"], tuning_share=None, max_tuning_seconds=1e6, verbose=0
    )
    model = trained([accel])
    assert accel.report.trials[1].outcome is tfaccel.Outcome.FAILED
    assert "ValueError: this pass always fails" in accel.report.trials[1].reason
    assert_same(state(model), stock_state())


def test_a_wrong_candidate_is_unfaithful(monkeypatch):
    let_win(monkeypatch, tfaccel.Speedup(2.0, 1.9, 2.1, 6))
    accel = tfaccel.AccelCallback(
        includes=["wrong"], tuning_share=None, max_tuning_seconds=1e6, verbose=0
    )
    model = trained([accel])
    outcome = accel.report.trials[1]
    assert outcome.outcome is tfaccel.Outcome.UNFAITHFUL, accel.report.to_markdown()
    assert outcome.drift.gradient == pytest.approx(0.5, rel=1e-3)
    assert accel.plan.is_baseline
    assert_same(state(model), stock_state())


def test_keyboard_interrupt_in_a_trial_restores_everything():
    model = make_model()
    model.fit(**make_data(3))
    accel = tfaccel.AccelCallback(
        tfaccel.Plan((Failing("KeyboardInterrupt"),)), verbose=0, cache_dir=False
    )
    auto = tfaccel.AccelCallback(
        includes=["interrupting"], tuning_share=None, max_tuning_seconds=1e6, verbose=0
    )
    for callback in (accel, auto):
        before, function = state(model), model.train_function
        with pytest.raises(KeyboardInterrupt):
            model.fit(**make_data(), callbacks=[callback])
        assert model.train_function is function
        if callback is accel:
            assert_same(before, state(model))


@dataclasses.dataclass(frozen=True)
class Interrupting(Failing):
    """Ctrl-C while a candidate is traced."""

    name = "interrupting"
    error: str = "KeyboardInterrupt"


class Fails(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 6:
            raise ZeroDivisionError


def test_an_exception_in_another_callback_leaves_the_next_fit_alone():
    model = make_model()
    accel = tfaccel.AccelCallback(["fused_optimizer"], verbose=0)
    with pytest.raises(ZeroDivisionError) as caught:  # which holds the fit's own variables
        model.fit(**make_data(), callbacks=[accel, Fails()])
    function = accel.session.baseline
    model.fit(**make_data())
    assert model.train_function is function
    assert caught.type is ZeroDivisionError


def test_an_exception_in_another_callback_leaves_the_model_as_it_was():
    """As soon as nobody holds the exception, though Keras calls no `on_train_end`."""
    model, data = make_model(), make_data()
    held = {"validation_data": (data["x"], data["y"])}
    accel = tfaccel.AccelCallback(["fused_optimizer"], verbose=0)
    with pytest.raises(ZeroDivisionError):
        model.fit(**data, **held, callbacks=[accel, Fails(), tfaccel.ProfilerCallback(verbose=0)])
    gc.collect()
    assert model.train_function is accel.session.baseline
    assert model.test_function is None


@pytest.mark.parametrize("guard", [True, False])
def test_the_guard_puts_the_last_good_state_back(guard):
    accel = tfaccel.AccelCallback([Poison(20)], guard=guard, verbose=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = trained([accel], epochs=4)
    told = [str(w.message) for w in caught if "non-finite" in str(w.message)]
    assert len(told) == guard
    assert all(np.all(np.isfinite(v)) for v in state(model)) == guard
    assert accel.plan.is_baseline == guard


def test_terminate_on_nan_never_sees_what_the_guard_caught():
    with pytest.warns(RuntimeWarning, match="non-finite"):
        model = trained(
            [tfaccel.AccelCallback([Poison(20)], verbose=0), keras.callbacks.TerminateOnNaN()]
        )
    assert len(model.history.history["loss"]) == 3
    assert np.all(np.isfinite(model.history.history["loss"]))


@pytest.mark.parametrize("steps_per_execution", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("argument, value", [("x", np.inf), ("y", np.nan)])
@pytest.mark.parametrize("row", [0, pytest.param(60, marks=pytest.mark.slow)])
def test_a_bad_batch_of_the_user_is_bad_for_everybody(row, argument, value, steps_per_execution):
    """It is not taken for the plan's doing: TerminateOnNaN sees what it would have seen."""
    data = make_data()
    data[argument] = data[argument].copy()
    data[argument][row] = value

    def stopped_at(callbacks):
        keras.utils.set_random_seed(4)
        model = make_model(steps_per_execution=steps_per_execution)
        model.fit(**data, shuffle=False, callbacks=[*callbacks, keras.callbacks.TerminateOnNaN()])
        return int(model.optimizer.iterations.numpy())

    accel = tfaccel.AccelCallback(["fused_optimizer"], verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert stopped_at([accel]) == stopped_at([])
    assert not accel.plan.is_baseline


def test_after_a_bad_batch_of_the_user_the_guard_watches_on():
    """The loss of the next epoch is finite again where the user's step skipped the batch."""

    class Skipping(keras.Sequential):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
            good = tf.math.is_finite(loss)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(
                [tf.where(good, g, 0.0) for g in gradients], self.trainable_variables
            )
            return {"loss": self.compute_loss(x, y, self(x))}

    data = make_data()
    data["y"][60] = np.nan
    model = Skipping([keras.Input((4,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    accel = tfaccel.AccelCallback([Poison(25)], verbose=0)
    with pytest.warns(RuntimeWarning, match="the loss turned non-finite"):
        model.fit(**data, epochs=3, shuffle=False, callbacks=[accel])
    assert accel.plan.is_baseline


@dataclasses.dataclass(frozen=True)
class Unprepared(Serving):
    """Cannot get ready."""

    name = "unprepared"

    def prepare(self, context, plan, clock, deadline=math.inf):
        raise ValueError("Exception encountered when calling X.call().\n\n\x1b[1mNo way.\x1b[0m")


@pytest.mark.parametrize("others", [pytest.param([], marks=pytest.mark.slow), ["fused_optimizer"]])
def test_a_pass_that_can_t_get_ready_is_left_out(others):
    accel = tfaccel.AccelCallback(["unprepared", *others], verbose=0)
    with pytest.warns(UserWarning, match="leaves out unprepared: ValueError: No way.$"):
        model = trained([accel])
    assert accel.plan.names == tuple(others)
    if not others:
        assert_same(state(model), stock_state())


@dataclasses.dataclass(frozen=True)
class Broken(tfaccel.Pass):
    """Of somebody's own, and wrong about what models have."""

    name = "broken"

    def unsupported(self, workload):
        return workload.model.no_such_thing

    def applied(self, context):
        raise AssertionError("it never serves")


@pytest.mark.parametrize("plan", ["broken", "auto"])
def test_a_pass_that_can_not_even_be_asked_breaks_nothing(plan):
    def losses(*callbacks):
        keras.utils.set_random_seed(1)
        return make_model().fit(**make_data(), callbacks=[*callbacks]).history["loss"]

    names = {"plan": ["broken"]} if plan == "broken" else {"includes": ["broken"]}
    accel = tfaccel.AccelCallback(**names, tuning_share=None, verbose=0)
    with pytest.warns(UserWarning, match="no_such_thing"):
        found = losses(accel)
    assert accel.plan.is_baseline
    assert found == losses()


def test_an_error_of_the_users_own_step_is_not_the_plans():
    """Labels out of range: the plan's step fails first, and the user's own tells why."""
    x, y = np.ones((8, 4), "float32"), np.full(8, 5)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    accel = tfaccel.AccelCallback(["fused_optimizer"], verbose=0)
    with warnings.catch_warnings(), pytest.raises(tf.errors.InvalidArgumentError) as caught:
        warnings.simplefilter("error")
        model.fit(x, y, verbose=0, callbacks=[accel])
    said = trial.error_line(caught.value)
    assert said.startswith("InvalidArgumentError: Received a label value of 5")
