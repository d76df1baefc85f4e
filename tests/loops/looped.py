"""Loops of a user's own: models, steps by a clock, and plans for them."""

import contextlib
import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tfaccel.compat.patching import instance_attribute
from tfaccel.core.prior import Prior

OPTIMIZER = ["fused_optimizer"]


@dataclasses.dataclass(frozen=True)
class Paced(tfaccel.Pass):
    """A step takes so long by the clock, and is wrong or NaN where that is asked for."""

    name = "paced"
    seconds: float = 0.25
    factor: float = 1.0
    nan_from: int = 10**6

    def unsupported(self, workload):
        return None

    def prior(self, workload):
        return Prior(gain=2.0)

    @contextlib.contextmanager
    def applied(self, context):
        loop = LOOPS[0]
        with (
            instance_attribute(loop, "seconds", self.seconds),
            instance_attribute(loop, "factor", self.factor),
            instance_attribute(loop, "nan_from", self.nan_from),
        ):
            yield


LOOPS: list["Loop"] = []  # of the test in hand


def make_model(outputs=1, seed=1):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(outputs)]
    )


class Loop:
    """A model, an optimizer, and a step that takes a second by the clock."""

    seconds, factor, nan_from = 1.0, 1.0, 10**6

    def __init__(self, optimizer=None, clock=None, built=True):
        self.clock = clock
        self.model = make_model()
        self.optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.9)
        if built:  # else the first step would be traced twice, as its trace makes them
            self.optimizer.build(self.model.trainable_variables)
        self.metric = keras.metrics.Mean()
        self.traces = 0
        LOOPS[:] = [self]

    def step(self, x, y):
        self.traces += 1
        if self.clock is not None:
            seconds = self.seconds
            tf.py_function(lambda: self.clock.advance(seconds), [], [])
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self.model(x, training=True) - y) ** 2) * self.factor
            count = tf.cast(self.optimizer.iterations.value, tf.int32)
            loss *= tf.where(count >= self.nan_from, np.float32(np.nan), 1.0)
        weights = self.model.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        self.metric.update_state(loss)
        return {"loss": loss, "mean": self.metric.result()}

    def state(self):
        variables = [*self.model.variables, *self.optimizer.variables, *self.metric.variables]
        return [np.array(v) for v in variables]


def batches(count, size=8):
    rng = np.random.default_rng(3)
    for _ in range(count):
        x = rng.normal(size=(size, 4)).astype("float32")
        yield tf.constant(x), tf.constant(x[:, :1])


def accelerated(loop, plan="auto", **settings):
    settings = {"cache_dir": False, "verbose": 0} | settings
    if loop.clock is not None:
        settings = {"clock": loop.clock, "tuning_share": 1.0} | settings
    function = tf.function(loop.step)
    return tfaccel.accelerate_step(
        function, plan, model=loop.model, optimizer=loop.optimizer, **settings
    )


def run(step, count=6, size=8):
    return [{k: float(v) for k, v in step(*b).items()} for b in batches(count, size)]


@functools.cache
def plain(count=6, size=8, optimizer=None):
    loop = Loop(optimizer)
    return loop, run(tf.function(loop.step), count, size)


def assert_alike(loop, losses, other, expected, exact=False):
    bounds = {"rtol": 0, "atol": 0} if exact else {"rtol": 2e-5, "atol": 1e-6}
    for left, right in zip(loop.state(), other.state(), strict=True):
        np.testing.assert_allclose(left, right, **bounds)
    for left, right in zip(losses, expected, strict=True):
        assert left == pytest.approx(right, rel=0 if exact else 1e-5)


def path(step):
    return [phase.name for phase in step.path]
