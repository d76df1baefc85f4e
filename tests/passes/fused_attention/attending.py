"""Attention layers by Keras's code and by the pass's."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.passes.attention.fused_attention import FusedAttention
from tfaccel.system.device import Device

MultiHeadAttention = keras.layers.MultiHeadAttention
GroupQueryAttention = keras.layers.GroupQueryAttention


CPU = Device("CPU", "test")
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
BATCH, QUERIES, KEYS, WIDTH = 3, 5, 7, 12


def workload_of(*layers):
    model = keras.Model()
    model.parts = list(layers)
    return Workload(model, device=CPU)


def twins(make, rng, shapes, copies=2):
    """Equal layers, built, with weights and biases that are not their defaults."""
    layers = [make() for _ in range(copies)]
    for layer in layers:
        layer.build(*shapes)
    for weights in zip(*(layer.trainable_weights for layer in layers), strict=True):
        value = rng.normal(size=weights[0].shape) * 0.5
        for weight in weights:
            weight.assign(value)
    return layers


class Run:
    """A traced function of a layer: its output, and gradients of its inputs and weights."""

    def __init__(self, layer, inputs, spec=None, fused=None, jit_compile=False, **kwargs):
        self.weights = [w.value for w in layer.trainable_weights]

        @tf.function(jit_compile=jit_compile, autograph=False)
        def run(*inputs):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                y = layer(*_named(inputs), **kwargs)
                y = y[0] if isinstance(y, tuple) else y
                loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 2)
            return y, *tape.gradient(loss, [*inputs, *self.weights])

        spec = spec or [tf.TensorSpec(x.shape, x.dtype) for x in inputs]
        with (fused or Plan()).applied(StepContext(workload_of(layer))):
            self.function = run.get_concrete_function(*spec)

    def ops(self):
        return [op.type for op in self.function.graph.get_operations()]

    def __call__(self, *inputs):
        return [tf.cast(x, tf.float32).numpy() for x in self.function(*inputs)]


def _named(inputs):
    """One tensor is query, key and value."""
    return inputs if len(inputs) > 1 else (inputs[0], inputs[0])


def assert_close(actual, expected, **tolerance):
    """Equal beside the largest of all: a key's bias has a gradient of nothing but rounding."""
    size = max(np.abs(e).max(initial=1.0) for e in expected)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a / size, e / size, **(tolerance or CLOSE))


def inputs_of(rng, lengths, dtype="float32"):
    return [tf.cast(rng.normal(size=(BATCH, n, WIDTH)), dtype) for n in lengths]


def assert_same_as_keras(
    make, rng, lengths=(QUERIES,), dtype="float32", spec=None, jit_compile=False, **kwargs
):
    """A fused layer and Keras's agree; returns the fused run."""
    tolerance = kwargs.pop("tolerance", {})
    inputs = inputs_of(rng, lengths, dtype)
    own, layer = twins(make, rng, [x.shape for x in _named(inputs)])
    plain = Run(own, inputs, spec, **kwargs)
    fused = Run(layer, inputs, spec, FusedAttention(), jit_compile, **kwargs)
    assert_close(fused(*inputs), plain(*inputs), **tolerance)
    assert fused.ops() != plain.ops()
    return fused


LAYERS = {
    "plain": lambda: MultiHeadAttention(3, 4),
    "one head": lambda: MultiHeadAttention(1, 4),
    "other value_dim": lambda: MultiHeadAttention(3, 4, value_dim=5),
    "no bias": lambda: MultiHeadAttention(3, 4, use_bias=False),
    "output_shape": lambda: MultiHeadAttention(3, 4, output_shape=(2, 5)),
    "regularized": lambda: MultiHeadAttention(3, 4, kernel_regularizer="l2"),
    "grouped": lambda: GroupQueryAttention(4, 4, 2),
    "all heads share": lambda: GroupQueryAttention(4, 4, 1, use_bias=False),
}


# One tensor, one for keys and values, and one for each.
LENGTHS = [(QUERIES,), (QUERIES, KEYS), (QUERIES, KEYS, KEYS)]


# Every layer meets one of them, and masks meet the two kinds of layers.
SELF_AND_CROSS = [
    pytest.param(
        make,
        lengths,
        id=f"{name}-{lengths}",
        marks=() if place % 3 == turn else pytest.mark.slow,
    )
    for place, (name, make) in enumerate(LAYERS.items())
    for turn, lengths in enumerate(LENGTHS)
    if place % 3 == turn or name in ("plain", "grouped")
]
