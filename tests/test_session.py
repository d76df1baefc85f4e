"""What a user sees of a `fit` with AccelCallback, above all when things go wrong."""

import contextlib
import dataclasses
import functools
import gc
import logging
import math
import warnings
from typing import ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock
from early import built_early

import tfaccel
from tfaccel.autotune import eligibility, trial
from tfaccel.autotune.options import make_options
from tfaccel.compat.patching import instance_attribute
from tfaccel.measure import racing, timing

layers = keras.layers


def make_model(**compiling):
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, activation="relu"), layers.Dense(1)]
    )
    # It has slots, as Adam has, and takes half the time to trace.
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(**{"optimizer": optimizer, "loss": "mse", **compiling})
    return model


def make_data(batches=12, batch_size=8):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(batches * batch_size, 4)).astype("float32")
    return {"x": x, "y": x.sum(axis=1, keepdims=True), "batch_size": batch_size, "verbose": 0}


@dataclasses.dataclass(frozen=True)
class _Serving(tfaccel.Pass):
    """The common half of this file's passes."""

    name = "serving"

    def unsupported(self, workload):
        return None

    def applied(self, context):
        return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class Poison(_Serving):
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
class Failing(_Serving):
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


@dataclasses.dataclass(frozen=True)
class Wrong(_Serving):
    """Fast, finite and wrong: gradients of half the size."""

    name = "wrong"

    @contextlib.contextmanager
    def applied(self, context):
        optimizer = context.workload.model.optimizer
        apply = optimizer.apply

        def halved(grads, variables=None):
            return apply([g * 0.5 for g in grads], variables)

        with instance_attribute(optimizer, "apply", halved):
            yield


def state(model):
    return [v.numpy() for v in [*model.variables, *model.optimizer.variables]]


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def trained(callbacks=(), epochs=3, **compiling):
    keras.utils.set_random_seed(4)
    model = make_model(**compiling)
    if not callbacks:
        built_early(model)
    model.fit(**make_data(), epochs=epochs, callbacks=list(callbacks))
    return model


@functools.cache
def stock_state():
    """What Keras by itself comes to; several tests compare with the same training."""
    return state(trained())


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
    _let_win(monkeypatch, tfaccel.Speedup(2.0, 1.9, 2.1, 6))
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


def test_a_refused_pass_of_an_explicit_plan_is_left_out():
    with pytest.warns(UserWarning, match="leaves out fused_norm"):
        trained([tfaccel.AccelCallback(["fused_norm", "fused_optimizer"], verbose=0)])


@dataclasses.dataclass(frozen=True)
class Unprepared(_Serving):
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
class Retracing(_Serving):
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
    monkeypatch.setattr(eligibility, "_UNSERVED", (tf.distribute.OneDeviceStrategy,))
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        model = make_model()
    accel = tfaccel.AccelCallback(verbose=0)
    model.fit(**make_data(), callbacks=[accel])
    assert "OneDeviceStrategy" in accel.report.note


def _let_win(monkeypatch, gain):
    """Whatever is tried comes out with this speedup, however busy the machine is."""
    monkeypatch.setattr(timing, "speedup", lambda baseline, candidate: gain)
    monkeypatch.setattr(racing, "CLEARLY_SLOWER", math.inf)


def test_a_plan_that_won_is_found_again(monkeypatch):
    gain = tfaccel.Speedup(2.0, 1.9, 2.1, 6)
    with monkeypatch.context() as patch:
        _let_win(patch, gain)
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
class Halving(_Serving):
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
        _let_win(patch, tfaccel.Speedup(2.0, 1.9, 2.1, 6))
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


class Picky(layers.Layer):
    """Runs only where a pass makes it tolerant."""

    tolerant = False

    def call(self, x):
        most = np.float32(np.inf if self.tolerant else -np.inf)
        tf.debugging.assert_less_equal(tf.reduce_mean(x), most, "no such kernel")
        return x * 1.0


@dataclasses.dataclass(frozen=True)
class Rescuer(_Serving):
    """Makes the step run."""

    name = "rescuer"

    def fallback_reason(self, error):
        return "this device has no such kernel" if "no such kernel" in str(error) else ""

    @contextlib.contextmanager
    def applied(self, context):
        layer = next(item for item in context.workload.layers if isinstance(item, Picky))
        with instance_attribute(layer, "tolerant", True):
            yield


def picky_model(tolerant=False, built=True):
    keras.utils.set_random_seed(4)
    picky = Picky()
    picky.tolerant = tolerant
    body = [layers.Dense(8), picky, layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *body] if built else body)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", metrics=["mae"])
    return model


@pytest.mark.parametrize("built", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", [{"plan": ["rescuer"]}, {"includes": ["rescuer"]}])
def test_a_step_that_cannot_run_as_written_runs_under_the_pass_that_rescues_it(settings, built):
    data = make_data()
    fitting = data | {
        "epochs": 2,
        "shuffle": False,
        "validation_data": (data["x"][:16], data["y"][:16]),
    }
    accel = tfaccel.AccelCallback(**settings, cache_dir=False, verbose=0)
    model = picky_model(built=built)
    history = model.fit(**fitting, callbacks=[accel])
    expected = picky_model(tolerant=True, built=built)
    expected_history = expected.fit(**fitting)
    assert_same(state(model), state(expected))
    assert list(history.history.values()) == list(expected_history.history.values())
    assert accel.plan.names == ("rescuer",)


def test_a_step_that_nobody_rescues_fails_as_it_would_have():
    with pytest.raises(tf.errors.InvalidArgumentError, match="no such kernel"):
        picky_model().fit(**make_data(), callbacks=[tfaccel.AccelCallback(verbose=0)])


@pytest.mark.parametrize(
    "settings",
    [{"plan": ["rescuer"]}, pytest.param({"includes": ["rescuer"]}, marks=pytest.mark.slow)],
)
def test_tune_says_what_runs_where_the_own_step_cannot(settings):
    data = make_data()
    dataset = tf.data.Dataset.from_tensor_slices((data["x"], data["y"])).batch(16)
    report = tfaccel.tune(picky_model(), dataset, **settings, cache_dir=False, verbose=0)
    assert report.plan.names == ("rescuer",)
    assert "this device has no such kernel" in report.note
    with pytest.raises(tf.errors.InvalidArgumentError, match="no such kernel"):
        tfaccel.tune(picky_model(), dataset, ["fused_optimizer"], verbose=0)


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
