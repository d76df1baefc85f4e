"""The validation inside `fit`, under a plan."""

import contextlib
import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock

import tfaccel
from tfaccel.compat.patching import instance_attribute
from tfaccel.measure import timing
from tfaccel.training.validation import Turn

layers = keras.layers


@dataclasses.dataclass(frozen=True)
class Forward(tfaccel.Pass):
    """Adds `bias` to the model's outputs in validation, and takes `seconds` off the clock."""

    name = "forward"
    bias: float = 0.0

    def unsupported(self, workload):
        return None

    @contextlib.contextmanager
    def applied(self, context):
        head = context.workload.model.layers[-1]
        call = head.call

        def shifted(inputs, training=None):
            return call(inputs) + (0.0 if training else self.bias)

        with instance_attribute(head, "call", shifted):
            yield


def fit(accel, epochs=4, freq=1):
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, activation="relu"), layers.Dense(1)]
    )
    model.compile("sgd", "mse", metrics=["mae"])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(640, 4)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    history = model.fit(
        x[:80], y[:80], batch_size=8, epochs=epochs, verbose=0, callbacks=accel,
        validation_data=(x, y), validation_batch_size=8, validation_freq=freq,
    )  # fmt: skip
    return model, history.history


@functools.cache
def stock_history():
    return fit([])[1]


@pytest.fixture
def always_faster(monkeypatch):
    """Whatever is timed comes out twice as fast; a clock on which all takes a while."""
    monkeypatch.setattr(timing, "speedup", lambda a, b: tfaccel.Speedup(2.0, 1.9, 2.1, len(a)))


def accelerated(bias=0.0):
    return tfaccel.AccelCallback(
        includes=["forward"],
        tuning_share=None,
        max_tuning_seconds=1e9,
        verbose=0,
        clock=FakeClock(step=1.0),
    )


def test_a_faithful_plan_serves_validation(always_faster):
    accel = accelerated()
    model, history = fit([accel])
    assert accel.plan.names == ("forward",)
    assert accel.session.validation.turn is Turn.ACCELERATED
    for name, values in stock_history().items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5, err_msg=name)
    # The test function is the user's afterwards.
    assert "tensorflow.trainer" in model.test_function.__module__  # Keras made it
    assert np.isfinite(model.evaluate(tf.ones((8, 4)), tf.ones((8, 1)), verbose=0)).all()


def test_a_plan_that_is_wrong_in_validation_does_not_serve_it(always_faster, monkeypatch):
    monkeypatch.setattr(
        Forward, "__init__", lambda self, bias=3.0: object.__setattr__(self, "bias", bias)
    )
    accel = accelerated()
    _, history = fit([accel])
    assert accel.plan.names == ("forward",)
    assert accel.session.validation.turn is Turn.ORIGINAL
    for name, values in stock_history().items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5, err_msg=name)


def test_without_validation_nothing_is_left(always_faster):
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(
        np.ones((80, 4)), np.ones((80, 1)), batch_size=8, verbose=0, callbacks=[accelerated()]
    )
    assert model.test_function is None


def test_a_plan_for_the_optimizer_alone_leaves_validation_alone():
    accel = tfaccel.AccelCallback(["fused_optimizer"], verbose=0)
    fit([accel], epochs=1)
    assert accel.session.validation is None


def test_an_evaluate_in_a_callback_keeps_its_test_function():
    """Nothing need be traced again afterwards, as without tfaccel."""

    class Evaluates(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.evaluate(x, x[:, :1], verbose=0)

    x = np.ones((16, 4), "float32")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    accel = tfaccel.AccelCallback([Forward()], verbose=0)
    model.fit(x, x[:, :1], verbose=0, callbacks=[Evaluates(), accel])
    assert not accel.plan.is_baseline
    assert "tensorflow.trainer" in model.test_function.__module__
