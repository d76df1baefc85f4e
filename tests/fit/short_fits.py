"""Short fits, and passes that fail in one way each."""

import contextlib
import dataclasses
import math

import keras
import numpy as np
from early import built_early

import tfaccel
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
class Serving(tfaccel.Pass):
    """The common half of this file's passes."""

    name = "serving"

    def unsupported(self, workload):
        return None

    def applied(self, context):
        return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class Wrong(Serving):
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


def let_win(monkeypatch, gain):
    """Whatever is tried comes out with this speedup, however busy the machine is."""
    monkeypatch.setattr(timing, "speedup", lambda baseline, candidate: gain)
    monkeypatch.setattr(racing, "CLEARLY_SLOWER", math.inf)
