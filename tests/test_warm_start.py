"""A plan of the cache runs from the first step on, where nothing can have changed."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock

import tfaccel
from tfaccel.autotune.plan_cache import PlanCache
from tfaccel.autotune.warm_start import is_kerass_own
from tfaccel.compat import keras_private

layers = keras.layers
PLAN = tfaccel.Plan((tfaccel.passes.FusedOptimizer(),))
GAIN = tfaccel.Speedup(2.0, 1.9, 2.1, 6)
OPTIONS = {"includes": ["fused_optimizer"], "verbose": 0}


class Mine(layers.Dense):
    """A layer of the user's own, whose code may change behind its name."""


def double(x):
    return 2.0 * x


def my_loss(y, predicted):
    return keras.ops.mean((y - predicted) ** 2, axis=-1)


def make(loss="mse", kind=layers.Dense, activation="relu"):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), kind(8, activation=activation), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    return model


def batches(count=12, size=8):
    x = np.random.default_rng(3).normal(size=(count * size, 4)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, x.sum(axis=1, keepdims=True))).batch(size)


@pytest.fixture
def cache(tmp_path):
    """Makes the cache know that the plan won, on a model of this kind and such batches."""

    def known(plan=PLAN, size=8, **model):
        arguments = {**OPTIONS, "max_tuning_seconds": 1e6, "cache_dir": tmp_path}
        report = tfaccel.tune(make(**model), batches(size=size), **arguments)
        (file,) = tmp_path.glob("*.json")
        # A trace is a hundredth of the time after 40 steps of the plan.
        own = dataclasses.replace(report.trials[0], compile_seconds=0.01, step_seconds=0.05)
        trials = (own, *report.trials[1:])
        won = dataclasses.replace(report, trials=trials, plan=plan, gain=GAIN)
        PlanCache(tmp_path).save(file.stem, won)
        return tmp_path

    return known


class Counts(keras.callbacks.Callback):
    """How often the original step was traced by the end of each batch."""

    def __init__(self):
        super().__init__()
        self.traces, self.losses = [], []

    def on_train_begin(self, logs=None):
        self._count = keras_private.trace_counter(self.model.train_function)

    def on_train_batch_end(self, batch, logs=None):
        self.traces.append(self._count())
        self.losses.append(logs["loss"])


def fitted(model, folder, data=None, epochs=2, **options):
    counts = Counts()
    accel = tfaccel.AccelCallback(cache_dir=folder, **{**OPTIONS, **options})
    model.fit(data or batches(), epochs=epochs, verbose=0, callbacks=[counts, accel])
    return accel, counts


def test_the_plans_trace_stands_in_for_the_originals(cache):
    """Every step is the plan's, on every batch in order, and the original is never traced."""
    accel, counts = fitted(make(), cache())
    assert accel.report.cached and accel.plan == PLAN
    assert accel.report.gain == GAIN and accel.report.tuning_seconds < 1.0
    assert set(counts.traces) == {0}
    plain = Counts()
    make().fit(batches(), epochs=2, verbose=0, callbacks=[plain])
    np.testing.assert_allclose(counts.losses, plain.losses, rtol=1e-4)


@pytest.mark.parametrize(
    "model",
    [{"loss": my_loss}, {"kind": Mine}, {"activation": double}],
    ids=["loss", "layer", "activation"],
)
def test_what_is_not_kerass_is_looked_at_first(cache, model):
    """A name may stand for other code by now, so the plan is compared once more."""
    folder = cache(**model)
    _, counts = fitted(make(**model), folder)
    assert counts.traces[0] == 1


def test_other_batches_are_another_training(cache):
    _, counts = fitted(make(), cache(size=4))
    assert counts.traces[0] == 1


def test_without_a_cache_nothing_is_known(cache):
    cache()
    _, counts = fitted(make(), False)
    assert counts.traces[0] == 1


def test_a_plan_that_fails_leaves_the_training_as_it_is(cache, monkeypatch):
    folder = cache()

    def broken(self, context):
        raise RuntimeError("not today")

    monkeypatch.setattr(tfaccel.passes.FusedOptimizer, "applied", broken)
    with pytest.warns(UserWarning, match="not today"):
        accel, counts = fitted(make(), folder)
    assert accel.plan.is_baseline
    plain = Counts()
    make().fit(batches(), epochs=2, verbose=0, callbacks=[plain])
    np.testing.assert_array_equal(counts.losses, plain.losses)


def test_short_epochs_lose_no_batch(cache):
    """A plan that must know the sizes of batches looks at three; an epoch may have one."""
    plan = tfaccel.Plan((tfaccel.passes.XLA(),))
    folder = cache(plan)
    _, counts = fitted(make(), folder, batches(1), epochs=6)
    assert len(counts.losses) == 6
    plain = Counts()
    make().fit(batches(1), epochs=6, verbose=0, callbacks=[plain])
    np.testing.assert_allclose(counts.losses, plain.losses, rtol=1e-4)


def test_a_long_training_is_compared_with_the_original_in_the_end(cache):
    """Once its trace is a hundredth of the time; the live gain is then what is told."""
    accel, counts = fitted(make(), cache(), epochs=50, clock=FakeClock(step=0.01))
    assert counts.traces.index(1) == 40
    assert accel.report.gain != GAIN


@pytest.mark.parametrize(
    ("model", "own"),
    [
        ({}, True),
        ({"loss": keras.losses.MeanSquaredError()}, True),
        ({"loss": my_loss}, False),
        ({"kind": Mine}, False),
        ({"activation": double}, False),
        ({"activation": keras.activations.gelu}, True),
    ],
)
def test_what_is_kerass_own(model, own):
    assert is_kerass_own(make(**model)) is own


def test_lambdas_and_subclasses_are_not_kerass_own():
    inputs = keras.Input((4,))
    own = keras.Model(inputs, layers.Dense(1)(keras.ops.relu(inputs)))
    by_lambda = keras.Model(inputs, layers.Lambda(double)(inputs))

    class Trained(keras.Model):
        def train_step(self, data):
            return super().train_step(data)

    subclassed = Trained(inputs, layers.Dense(1)(inputs))
    patched = keras.Model(inputs, layers.Dense(1)(inputs))
    patched.layers[-1].call = double
    for model in (own, by_lambda, subclassed, patched):
        model.compile("sgd", "mse")
    assert [is_kerass_own(m) for m in (own, by_lambda, subclassed, patched)] == [True] + 3 * [False]
