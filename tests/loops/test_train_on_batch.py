"""`accelerate_step` for a compiled model: train, test and predict on batches."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock
from looped import LOOPS, OPTIMIZER, Loop, make_model, path

import tfaccel
from tfaccel.compat.patching import instance_attribute


def compiled(**settings):
    model = make_model()
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9), "mse", metrics=["mae"], jit_compile=False
    )
    return model


SIZES = (8, 8, 8, 5, 3, 7, 2, 8)


def on_batches(train, sizes=SIZES):
    """What `train_on_batch` returns for NumPy's arrays of these sizes."""
    rng = np.random.default_rng(3)
    found = []
    for size in sizes:
        x = rng.normal(size=(size, 4))
        found.append(train(x, x[:, :1], sample_weight=np.ones(size)))
    return np.array(found)


def noting(function, calls):
    """The same function, whose calls are noted."""

    def noted(data):
        calls.append(1)
        return function(data)

    return noted


@pytest.mark.parametrize(
    "plan", [pytest.param("baseline", marks=pytest.mark.slow), "auto", OPTIMIZER]
)
def test_train_on_batch_is_keras_s_own_and_traced_once(plan):
    model, other = compiled(), compiled()
    step = tfaccel.accelerate_step(model, plan, verbose=0)
    traces = []
    with instance_attribute(model, "train_step", noting(model.train_step, traces)):
        step = tfaccel.accelerate_step(model, plan, verbose=0)
        first = on_batches(step, SIZES[:1])
        made = len(traces)
        second = on_batches(step, SIZES[1:])
    # Variables are made in the first trace, which is then thrown away; a plan has one more.
    assert made <= 2 and len(traces) == made + (plan == OPTIMIZER)
    assert step.plan.names == (tuple(plan) if plan == OPTIMIZER else ())
    expected = (
        on_batches(other.train_on_batch, SIZES[:1]),
        on_batches(other.train_on_batch, SIZES[1:]),
    )
    np.testing.assert_allclose(first, expected[0], rtol=1e-5)
    np.testing.assert_allclose(second, expected[1], rtol=1e-5)
    for left, right in zip(model.variables, other.variables, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
    assert model.train_function is None


def test_test_and_predict_on_batch_return_what_keras_s_do():
    model = compiled()
    traces = []
    with contextlib.ExitStack() as stack:
        for name in ("test_step", "predict_step"):
            stack.enter_context(
                instance_attribute(model, name, noting(getattr(model, name), traces))
            )
        step = tfaccel.accelerate_step(model, verbose=0)
    made = []
    for size in (8, 5, 3):
        x = np.random.default_rng(size).normal(size=(size, 4)).astype("float32")
        for return_dict in (False, True):
            found = step.test_on_batch(x, x[:, :1], return_dict=return_dict)
            assert found == pytest.approx(model.test_on_batch(x, x[:, :1], return_dict=return_dict))
        np.testing.assert_allclose(step.predict_on_batch(x), model.predict_on_batch(x), rtol=1e-6)
        made.append(len(traces))
    assert made[0] == made[-1]


def test_a_model_that_is_compiled_anew_begins_anew():
    model = compiled()
    step = tfaccel.accelerate_step(model, OPTIMIZER, verbose=0)
    on_batches(step, (4, 4, 4))
    assert step.plan.names == ("fused_optimizer",)
    model.compile(keras.optimizers.Adam(), "mae")
    step.train_on_batch(np.ones((2, 4)), np.ones((2, 1)))
    assert step.plan.is_baseline
    assert int(model.optimizer.iterations) == 1


def test_a_model_that_runs_eagerly_is_left_alone():
    model = make_model()
    model.compile("sgd", "mse", run_eagerly=True)
    step = tfaccel.accelerate_step(model, OPTIMIZER, verbose=0)
    assert np.isfinite(step(np.ones((2, 4)), np.ones((2, 1))))
    assert "eagerly" in step.report.note


@pytest.mark.parametrize(
    "given, error, match",
    [
        ({"model": 1}, TypeError, "`model` is for a step that is a function"),
        ({"compile": True}, TypeError, "`compile` is for"),
        ({}, ValueError, "must be compiled"),
    ],
)
def test_what_does_not_go_with_a_model(given, error, match):
    with pytest.raises(error, match=match):
        tfaccel.accelerate_step(make_model(), **given)


class TimedModel(keras.Sequential):
    def train_step(self, data):
        seconds = LOOPS[0].seconds
        tf.py_function(lambda: LOOPS[0].clock.advance(seconds), [], [])
        return super().train_step(data)


def test_train_on_batch_is_raced_on_the_calls_of_the_loop(repeatable):
    clock, sizes = Loop(clock=FakeClock()).clock, [8] * 60
    model, other = (TimedModel(make_model().layers) for _ in range(2))
    for one in (model, other):
        one.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    settings = {"clock": clock, "tuning_share": 1.0, "cache_dir": False, "verbose": 0}
    step = tfaccel.accelerate_step(model, includes=["paced"], steps=60, **settings)
    found = on_batches(step, sizes)
    assert path(step) == ["OBSERVE", "PREDICT", "CHECK", "RACE", "PREDICT", "RUN"]
    assert step.plan.names == ("paced",)
    np.testing.assert_allclose(found, on_batches(other.train_on_batch, sizes), rtol=1e-5)
