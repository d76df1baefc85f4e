"""Steps by an optimizer, as Keras makes them and fused."""

import collections

import keras
import numpy as np
import tensorflow as tf

from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.passes.optimizer.fused_optimizer import FusedOptimizer
from tfaccel.system.device import Device

opt = keras.optimizers
CPU = Device("CPU", "test")


# In float64 nothing hides in a tolerance.
EXACT = {"rtol": 1e-12, "atol": 1e-14}


# Each optimizer that is served, and the op that does its work.
SERVED = {
    "sgd": (lambda **k: opt.SGD(0.1, **k), "ResourceApplyGradientDescent"),
    "momentum": (lambda **k: opt.SGD(0.1, momentum=0.9, **k), "ResourceApplyKerasMomentum"),
    "nesterov": (
        lambda **k: opt.SGD(0.1, momentum=0.9, nesterov=True, **k),
        "ResourceApplyKerasMomentum",
    ),
    "adam": (lambda **k: opt.Adam(0.01, **k), "ResourceApplyAdam"),
    "amsgrad": (lambda **k: opt.Adam(0.01, amsgrad=True, **k), "ResourceApplyAdamWithAmsgrad"),
    "adam_options": (
        lambda **k: opt.Adam(0.01, beta_1=0.7, beta_2=0.95, epsilon=0.1, **k),
        "ResourceApplyAdam",
    ),
    "adamw": (lambda **k: opt.AdamW(0.01, weight_decay=0.1, **k), "ResourceApplyAdam"),
    "adamax": (lambda **k: opt.Adamax(0.01, **k), "ResourceApplyAdaMax"),
    "rmsprop": (lambda **k: opt.RMSprop(0.01, **k), "ResourceApplyRMSProp"),
    "rmsprop_momentum": (
        lambda **k: opt.RMSprop(0.01, rho=0.8, momentum=0.7, **k),
        "ResourceApplyRMSProp",
    ),
    "rmsprop_centered": (
        lambda **k: opt.RMSprop(0.01, centered=True, **k),
        "ResourceApplyCenteredRMSProp",
    ),
    "rmsprop_centered_momentum": (
        lambda **k: opt.RMSprop(0.01, centered=True, momentum=0.7, epsilon=1e-3, **k),
        "ResourceApplyCenteredRMSProp",
    ),
    "adadelta": (lambda **k: opt.Adadelta(0.5, **k), "ResourceApplyAdadelta"),
}
FUSED_OPS = {op for _, op in SERVED.values()}


def dense_model(optimizer, dtype="float32", constraint=None, **compile_options):
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input((6,), dtype=dtype),
            keras.layers.Dense(3, "tanh", dtype=dtype, kernel_constraint=constraint),
        ]
    )
    model.compile(optimizer, "mse", **compile_options)
    return model


def batches_of(rng, count=5, size=4, dtype="float32"):
    x = rng.normal(size=(count, size, 6))
    y = rng.normal(size=(count, size, 3))
    return [(tf.cast(a, dtype), tf.cast(b, dtype)) for a, b in zip(x, y, strict=True)]


class Trained:
    """A model and a traced step of its optimizer, by a pass or by Keras alone."""

    def __init__(self, model, fused, step=None, jit_compile=False):
        self.model = model
        # In a trace Keras would make the variables, and TensorFlow would trace again.
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self.context = StepContext(Workload(model, device=CPU))
        plan = Plan((FusedOptimizer(),) if fused else ())
        step = step or self.plain_step

        @tf.function(jit_compile=jit_compile, autograph=False, reduce_retracing=True)
        def function(*batch):
            with plan.applied(self.context):
                step(*batch)

        self.function = function

    def plain_step(self, x, y):
        model, optimizer = self.model, self.model.optimizer
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y))
            loss = optimizer.scale_loss(loss)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)

    def run(self, batches):
        for batch in batches:
            self.function(*batch)
        return self

    def variables(self):
        return [*self.model.weights, *self.model.optimizer.variables]

    def state(self):
        return [tf.cast(v.value, tf.float64).numpy() for v in self.variables()]

    def ops(self):
        """How often each fused op occurs in the traced graphs, branches included."""
        counts = collections.Counter()
        for concrete in self.function._list_all_concrete_functions():
            definition = concrete.graph.as_graph_def()
            nodes = [*definition.node]
            for function in definition.library.function:
                nodes += function.node_def
            counts.update(node.op for node in nodes if node.op in FUSED_OPS)
        return counts


def assert_close(actual, expected, rtol=1e-6, atol=1e-6):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=atol)


def assert_same_as_keras(make_model, batches, rtol=1e-6, atol=1e-6, **options):
    """Both ways of training the same model agree; returns the fused one."""
    plain = Trained(make_model(), fused=False, **options).run(batches)
    fused = Trained(make_model(), fused=True, **options).run(batches)
    assert not plain.ops()
    assert_close(fused.state(), plain.state(), rtol, atol)
    return fused
