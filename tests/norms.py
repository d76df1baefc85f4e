"""Normalization layers, fused and not: how they are run and compared."""

import keras
import numpy as np
import tensorflow as tf

from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.passes.normalization.fused_norm import FusedNorm
from tfaccel.system.device import Device

BatchNormalization = keras.layers.BatchNormalization
LayerNormalization = keras.layers.LayerNormalization

CPU = Device("CPU", "test")
GPU = Device("GPU", "test", compute_capability=(9, 0))
FUSED = "FusedBatchNormV3"
BY_OP, BY_LOOPS = FusedNorm(loops=False), FusedNorm(loops=True)
# Sums run in another order than Keras's, in float32.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}
SHAPES = [(8, 5), (6, 7, 3), (4, 5, 6, 3), (2, 3, 4, 5, 2), (1, 4, 4, 3), (3, 1, 1, 2), (1, 3)]


def workload_of(*layers, device=CPU):
    model = keras.Model()
    model.parts = list(layers)
    return Workload(model, device=device)


def twins(make, shape, rng, copies=2):
    """Equal layers, built, with weights that are not their defaults."""
    layers = [make() for _ in range(copies)]
    for layer in layers:
        layer.build((None, *shape[1:]))
    for position, weight in enumerate(layers[0].weights):
        low = 0.5 if "variance" in weight.path else -1.5
        value = rng.uniform(low, 2.0, weight.shape)
        for layer in layers:
            layer.weights[position].assign(value)
    return layers


class Run:
    """A traced function of a layer: its output, and gradients of a scalar of it."""

    def __init__(
        self, layer, shape, dtype="float32", jit_compile=False, fused=None, device=CPU, **kwargs
    ):
        self.layer = layer
        self.trained = [w.value for w in (layer.gamma, layer.beta) if w is not None]
        # At first neither the batch nor the middle dimensions are known while tracing.
        known = kwargs.pop("known", "channels")
        sizes = {"channels": [None] * (len(shape) - 1), "samples": [None, *shape[1:-1]]}
        spec = tf.TensorSpec([*sizes.get(known, shape[:-1]), shape[-1]], dtype)

        @tf.function(input_signature=[spec, spec], jit_compile=jit_compile, autograph=False)
        def run(x, weights):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, **kwargs)
            gradients = tape.gradient(y, [x, *self.trained], tf.cast(weights, y.dtype))
            return y, *gradients

        if fused is None:
            self.function = run.get_concrete_function()
        else:
            with fused.applied(StepContext(workload_of(layer, device=device))):
                self.function = run.get_concrete_function()

    def ops(self):
        return [op.type for op in self.function.graph.get_operations()]

    def __call__(self, x, weights):
        return [tf.cast(t, tf.float32).numpy() for t in self.function(x, weights)]


def assert_close(actual, expected, **tolerance):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, **(tolerance or CLOSE))


def statistics(layer):
    return [layer.moving_mean.numpy(), layer.moving_variance.numpy()]


def assert_same_as_keras(
    make, shape, rng, kwargs, dtype="float32", steps=3, jit_compile=False, by=BY_OP, **tolerance
):
    """Several steps of a fused layer and of Keras's agree; returns the fused run."""
    own, layer = twins(make, shape, rng)
    plain = Run(own, shape, dtype, jit_compile, **kwargs)
    fused = Run(layer, shape, dtype, jit_compile, fused=by, **kwargs)
    for _ in range(steps):
        x = tf.cast(rng.normal(1.0, 2.0, shape), dtype)
        weights = tf.cast(rng.normal(size=shape), dtype)
        assert_close(fused(x, weights), plain(x, weights), **tolerance)
    assert_close(
        [w.numpy() for w in layer.weights], [w.numpy() for w in own.weights], **(tolerance or CLOSE)
    )
    return fused


def second_order(call, x, gamma, jit_compile=False):
    """The gradient of the norm of a gradient, as a gradient penalty has it."""

    @tf.function(jit_compile=jit_compile, autograph=False)
    def penalty(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                value = tf.reduce_sum(tf.sin(call(x)))
            inner_gradient = inner.gradient(value, x)
            total = tf.reduce_sum(inner_gradient**3)
        return outer.gradient(total, [x, gamma])

    return [t.numpy() for t in penalty(x)]
