"""What a user sees of a `fit` with AccelCallback, above all when things go wrong."""

import contextlib
import dataclasses
import logging
from typing import ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock
from short_fits import Serving, Wrong, assert_same, let_win, make_data, make_model, state, trained

import tfaccel
from tfaccel.autotune import eligibility
from tfaccel.autotune.options import make_options

layers = keras.layers


def test_too_short_a_training_says_so(capsys):
    accel = tfaccel.AccelCallback()
    trained([accel])
    assert accel.plan.is_baseline
    assert "too short to pay for a trial" in accel.report.note
    assert "too short to pay for a trial" in capsys.readouterr().out


def test_verbose_0_is_silent(capsys):
    trained([tfaccel.AccelCallback(verbose=0)])
    assert capsys.readouterr().out == ""


def test_the_table_is_printed_once_tuned(capsys):
    accel = tfaccel.AccelCallback(includes=["serving"], tuning_share=None, max_tuning_seconds=1e6)
    trained([accel])
    shown = capsys.readouterr().out
    for text in ("plan", "step", "speedup", "drift", "verdict", "serving", "Tuning took"):
        assert text in shown


def test_a_refused_pass_of_an_explicit_plan_is_left_out():
    with pytest.warns(UserWarning, match="leaves out fused_norm"):
        trained([tfaccel.AccelCallback(["fused_norm", "fused_optimizer"], verbose=0)])


@pytest.mark.slow
def test_trials_are_not_taken_for_cheap_where_the_step_was_traced_before():
    """The first step of a later fit does not show what a trace takes."""
    model = trained()
    fit = {**make_data(), "epochs": 3}
    clock = FakeClock(step=1e-4)
    accel = tfaccel.AccelCallback(
        includes=["serving"], tuning_share=None, max_tuning_seconds=0.1, verbose=0, clock=clock
    )
    model.fit(**fit, callbacks=[accel])
    assert "`max_tuning_seconds` allows 0.1" in accel.report.note
    assert accel.report.trials[0].compile_seconds < 1e-3  # nothing is made up


def test_a_later_fit_knows_what_the_trace_took():
    class Slow(keras.callbacks.Callback):
        """The first step, in which the clock is read twice, takes a minute."""

        def on_train_batch_begin(self, batch, logs=None):
            clock.step = 30.0 if batch == 0 else 1e-4

    clock = FakeClock()
    accel = tfaccel.AccelCallback(
        includes=["serving"], tuning_share=None, max_tuning_seconds=50.0, verbose=0, clock=clock
    )
    model = make_model()
    model.fit(**make_data(), callbacks=[accel, Slow()])
    assert "about 90.0 s" in accel.report.note
    clock.step = 1e-4
    model.fit(**make_data(), callbacks=[accel])
    assert "about 90.0 s" in accel.report.note


def test_run_eagerly_is_refused_with_a_reason():
    accel = tfaccel.AccelCallback(verbose=0)
    model = trained([accel], epochs=1, run_eagerly=True)
    assert "run_eagerly=True" in accel.report.note
    assert_same(state(model), state(trained(epochs=1, run_eagerly=True)))


@pytest.mark.parametrize("plan", ["auto", ["fused_optimizer"]])
def test_functions_that_run_eagerly_are_refused_with_a_reason(plan):
    tf.config.run_functions_eagerly(True)
    try:
        accel = tfaccel.AccelCallback(plan, tuning_share=None, verbose=0)
        trained([accel], epochs=1)
    finally:
        tf.config.run_functions_eagerly(False)
    assert accel.plan.is_baseline
    assert "run_functions_eagerly(True)" in accel.report.note


class TwoOptimizers(keras.Model):
    """As GANs are written: `compile` is given no optimizer, and makes one that nobody uses."""

    def __init__(self):
        super().__init__()
        self.layer = layers.Dense(1)
        self.layer.build((None, 4))
        self.built = True

    def compile(self, used):
        super().compile()
        self.used = used

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.layer(x) - y))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.used.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


@pytest.mark.parametrize(
    "plan", [["fused_optimizer"], pytest.param(["serving"], marks=pytest.mark.slow)]
)
def test_an_optimizer_that_no_step_uses_gets_no_slots(plan):
    def fitted(callbacks):
        keras.utils.set_random_seed(4)
        model = TwoOptimizers()
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
        model.fit(**make_data(), callbacks=callbacks)
        return model

    accel = tfaccel.AccelCallback(plan, verbose=0)
    model = fitted([accel])
    assert accel.plan.names == tuple(plan)
    assert not model.optimizer.built
    for value, stock in zip(model.get_weights(), fitted([]).get_weights(), strict=True):
        np.testing.assert_allclose(value, stock, rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class Retracing(Serving):
    """TensorFlow complains that a function was traced often, as it does in loops over models."""

    name = "retracing"

    @contextlib.contextmanager
    def applied(self, context):
        if tf.inside_function():
            tf.get_logger().warning("5 out of 5 calls to f triggered tf.function retracing.")
        yield


class Retraced(keras.Sequential):
    """TensorFlow complains when the user's own step is traced."""

    def train_step(self, data):
        tf.get_logger().warning("5 out of 5 calls to f triggered tf.function retracing.")
        return super().train_step(data)


@pytest.mark.parametrize("built", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_traces_of_a_given_plan_are_no_retracing(built):
    """Of an unbuilt model the user's own step is traced first."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    tf.get_logger().addHandler(handler)
    try:
        accel = tfaccel.AccelCallback(["retracing"], verbose=0)
        model = Retraced([*([keras.Input((4,))] if built else []), layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(**make_data(), callbacks=[accel])
    finally:
        tf.get_logger().removeHandler(handler)
    assert accel.plan.names == ("retracing",)
    assert not [line for line in said if "retracing" in line]


@pytest.mark.parametrize("plan", ["auto", ["fused_optimizer"]])
def test_a_callback_that_is_given_twice_leaves_nothing_behind(plan):
    model = trained(epochs=1)
    own = model.train_function
    accel = tfaccel.AccelCallback(plan, verbose=0)
    model.fit(**make_data(), callbacks=[accel, accel])
    assert model.train_function is own


def test_a_second_fit_goes_on_with_the_plan():
    accel = tfaccel.AccelCallback(["fused_optimizer"], verbose=0)
    model = trained([accel])
    fast = accel.session.built
    model.fit(**make_data(), callbacks=[accel])
    assert accel.session.built is fast
    model.compile("sgd", "mse")
    model.fit(**make_data(), callbacks=[accel])
    assert accel.session.built is not fast


def test_unknown_length_is_known_in_the_second_epoch():
    data = make_data()
    dataset = tf.data.Dataset.from_tensor_slices((data["x"], data["y"])).batch(8)
    dataset = dataset.filter(lambda x, y: True)
    model = make_model()
    accel = tfaccel.AccelCallback(
        includes=["serving"],
        tuning_share=1.0,
        max_tuning_seconds=1e6,
        verbose=0,
        clock=FakeClock(step=1.0),
    )
    model.fit(dataset, epochs=500, verbose=0, callbacks=[accel, StopAt(2)])
    assert accel.report is not None
    assert len(accel.report.trials) == 2


class StopAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch >= self.epoch


class Watches(keras.callbacks.Callback):
    """Looks at the model in mid-training, as a user's own callback might."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def on_train_batch_end(self, batch, logs=None):
        model = self.model
        policies = tuple(layer.dtype_policy.name for layer in model.layers)
        patched = any("call" in vars(layer) for layer in model.layers)
        own_step = "train_step" in vars(model) or "update_step" in vars(model.optimizer)
        kind = type(model.optimizer).__name__
        self.seen.add((policies, model.jit_compile, kind, patched, own_step, tuple(sorted(logs))))


@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_in_mid_training_the_model_is_the_user_s(first):
    watch = Watches()
    accel = tfaccel.AccelCallback(
        [tfaccel.passes.MixedPrecision("bfloat16"), "fused_optimizer", "xla"], verbose=0
    )
    trained([watch, accel] if first else [accel, watch], optimizer="adam")
    assert watch.seen == {(("float32", "float32"), False, "Adam", False, False, ("loss",))}


class TrainsOnBatch(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.train_on_batch(np.ones((2, 4)), np.ones((2, 1)))


def test_train_on_batch_from_a_callback():
    accel = tfaccel.AccelCallback(["fused_optimizer"], verbose=0)
    model = trained([accel, TrainsOnBatch()], epochs=1)
    assert model.optimizer.iterations.numpy() == 24


def test_a_strategy_without_synchronous_replicas_is_left_alone(monkeypatch):
    monkeypatch.setattr(eligibility, "UNSERVED", (tf.distribute.OneDeviceStrategy,))
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        model = make_model()
    accel = tfaccel.AccelCallback(verbose=0)
    model.fit(**make_data(), callbacks=[accel])
    assert "OneDeviceStrategy" in accel.report.note


def test_a_plan_that_won_is_found_again(monkeypatch):
    gain = tfaccel.Speedup(2.0, 1.9, 2.1, 6)
    with monkeypatch.context() as patch:
        let_win(patch, gain)
        tuned = tfaccel.AccelCallback(
            includes=["serving"], tuning_share=None, max_tuning_seconds=1e6, verbose=0
        )
        trained([tuned])
    assert tuned.plan.names == ("serving",)
    # On this clock a step takes so long that the plan's trace is soon paid for.
    again = tfaccel.AccelCallback(includes=["serving"], verbose=0, clock=FakeClock(step=1.0))
    trained([again])
    assert again.plan == tuned.plan
    assert (again.report.gain, again.report.cached) == (gain, True)
    assert again.report.tuning_seconds > 0  # the plan's trace
    short = tfaccel.AccelCallback(includes=["serving"], verbose=0)
    trained([short], epochs=1)
    assert short.plan.is_baseline
    assert "too short to pay for serving" in short.report.note


@dataclasses.dataclass(frozen=True)
class Halving(Serving):
    """Faithful, but for one loss."""

    name = "halving"
    of: ClassVar = ()

    @contextlib.contextmanager
    def applied(self, context):
        wrong = context.workload.model.loss in self.of
        with Wrong().applied(context) if wrong else contextlib.nullcontext():
            yield


def test_a_plan_from_the_cache_is_checked_before_it_trains(monkeypatch):
    """Two losses of one name."""

    def make_loss():
        def loss(y, out):
            return keras.ops.mean(keras.ops.square(y - out))

        return loss

    first, second = make_loss(), make_loss()
    monkeypatch.setattr(Halving, "of", (second,))
    with monkeypatch.context() as patch:
        let_win(patch, tfaccel.Speedup(2.0, 1.9, 2.1, 6))
        tuned = tfaccel.AccelCallback(
            includes=["halving"], tuning_share=None, max_tuning_seconds=1e6, verbose=0
        )
        trained([tuned], loss=first)
    assert tuned.plan.names == ("halving",)
    # On this clock a step takes so long that the plan's trace is soon paid for.
    again = tfaccel.AccelCallback(includes=["halving"], verbose=0, clock=FakeClock(step=1.0))
    with pytest.warns(UserWarning, match="in the cache, but does not serve here: gradient off"):
        model = trained([again], loss=second)
    assert again.plan.is_baseline
    assert_same(state(model), state(trained(loss=second)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"plan": "fastest"}, ValueError, "`plan` must be .*'fastest'"),
        ({"includes": ["turbo"]}, ValueError, "No pass is called 'turbo'"),
        ({"excludes": "xla"}, TypeError, "`excludes` must be a list"),
        ({"tolerance": -1}, ValueError, "`tolerance` must be positive"),
        ({"tuning_share": 2}, ValueError, "`tuning_share` must be .* Received: 2"),
        ({"max_tuning_seconds": -1}, ValueError, "`max_tuning_seconds` must not be negative"),
        ({"max_tuning_seconds": None}, TypeError, "`max_tuning_seconds` must be a number"),
        ({"tuning_share": "0.1"}, TypeError, "`tuning_share` must be .* Received: '0.1'"),
        ({"excludes": None}, TypeError, "`excludes` must be a list of pass names"),
        ({"cache_dir": True}, TypeError, "`cache_dir` must be"),
        ({"cache_dir": 3}, TypeError, "`cache_dir` must be .* Received: 3"),
        ({"plan": [tfaccel.passes.XLA]}, TypeError, r"Received: <class .*; write XLA\(\)"),
    ],
)
def test_a_wrong_argument_is_told_so(arguments, error, message):
    with pytest.raises(error, match=message):
        tfaccel.AccelCallback(**arguments)


def test_another_backend_is_told_so(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match=r"TensorFlow backend.*'jax'"):
        tfaccel.AccelCallback()


def test_what_is_excluded_is_not_added_when_memory_runs_out():
    other = {
        "tolerance": None,
        "tuning_share": 0.3,
        "max_tuning_seconds": 120.0,
        "cache_dir": False,
    }
    settings = [
        make_options("auto", includes=includes, excludes=excludes, **other)
        for includes, excludes in ((None, ()), (None, ["recompute"]), (["xla"], ()))
    ]
    assert [one.reserve for one in settings] == [("recompute",), (), ()]
    assert [("recompute" in one.considered) for one in settings] == [True, False, False]
