"""Recurrent layers by Keras's loop and by the pass's."""

import keras
import numpy as np
import tensorflow as tf

from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.passes import FusedRNN
from tfaccel.system.device import Device

L = keras.layers
CPU, TWO_CORES = Device("CPU", "test"), Device("CPU", "test", cores=2)
BATCH, STEPS, FEATURES, UNITS = 3, 5, 4, 2


# Sums run in another order than Keras's, in float32.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


class Plain(L.LSTM):
    """A subclass that overrides nothing of the maths."""


# The layer, and how many initial states it is given.
LAYERS = {
    "lstm": (lambda **k: L.LSTM(UNITS, **k), 0),
    "lstm sequences": (lambda **k: L.LSTM(UNITS, return_sequences=True, **k), 2),
    "lstm backwards with states": (
        lambda **k: L.LSTM(UNITS, return_sequences=True, return_state=True, go_backwards=True, **k),
        2,
    ),
    "lstm without bias": (lambda **k: L.LSTM(UNITS, use_bias=False, return_state=True, **k), 0),
    "lstm unrolled": (lambda **k: L.LSTM(UNITS, unroll=True, return_sequences=True, **k), 0),
    "lstm, separate gates": (lambda **k: L.LSTM(UNITS, implementation=1, **k), 2),
    "lstm, zeros for masked": (
        lambda **k: L.LSTM(UNITS, return_sequences=True, zero_output_for_mask=True, **k),
        0,
    ),
    "subclass": (lambda **k: Plain(UNITS, **k), 0),
    "gru": (lambda **k: L.GRU(UNITS, return_sequences=True, return_state=True, **k), 1),
    "gru without bias": (lambda **k: L.GRU(UNITS, use_bias=False, go_backwards=True, **k), 0),
    "gru reset before": (
        lambda **k: L.GRU(UNITS, reset_after=False, return_sequences=True, **k),
        1,
    ),
    "gru reset before, without bias": (
        lambda **k: L.GRU(UNITS, reset_after=False, use_bias=False, return_state=True, **k),
        0,
    ),
    "rnn of a cell": (lambda **k: L.RNN(L.LSTMCell(UNITS, **k), return_sequences=True, **k), 2),
    "rnn of a gru cell": (lambda **k: L.RNN(L.GRUCell(UNITS, **k), return_state=True, **k), 1),
    "bidirectional": (
        lambda **k: L.Bidirectional(L.LSTM(UNITS, return_sequences=True, **k), **k),
        4,
    ),
    "bidirectional sum": (lambda **k: L.Bidirectional(L.GRU(UNITS, **k), "sum", **k), 0),
    "bidirectional mul": (
        lambda **k: L.Bidirectional(L.LSTM(UNITS, return_state=True, **k), "mul", **k),
        0,
    ),
    "bidirectional pair": (
        lambda **k: L.Bidirectional(L.GRU(UNITS, return_sequences=True, **k), None, **k),
        0,
    ),
}


def workload_of(*layers, device=CPU, **kwargs):
    model = keras.Model()
    model.parts = list(layers)
    return Workload(model, device=device, **kwargs)


def built(make, rng, shape=(None, STEPS, FEATURES), **kwargs):
    """A layer with weights that are not their defaults; the same ones for the same `rng`."""
    layer = make(**kwargs)
    layer.build(shape)
    for weight in layer.trainable_weights:
        weight.assign(rng.normal(size=weight.shape) * 0.5)
    return layer


def traced(layer, states=0, dtype="float32", steps=STEPS, fused=False, device=CPU, **kwargs):
    """A function of inputs, initial states and weights: the outputs and all gradients."""
    trained = [weight.value for weight in layer.trainable_weights]
    spec = [tf.TensorSpec([None, steps, FEATURES], dtype)]
    spec += [tf.TensorSpec([None, UNITS], dtype)] * states

    @tf.function(input_signature=spec, autograph=False)
    def run(x, *initial):
        with tf.GradientTape() as tape:
            tape.watch([x, *initial])
            outputs = tf.nest.flatten(layer(x, initial_state=initial or None, **kwargs))
            # Each output counts by another weight.
            loss = tf.add_n([tf.reduce_sum(tf.sin(y + i)) for i, y in enumerate(outputs)])
        sources = [x, *initial, *trained]
        return outputs, tape.gradient(loss, sources, unconnected_gradients="zero")

    if not fused:
        return run.get_concrete_function()
    with FusedRNN().applied(StepContext(workload_of(layer, device=device))):
        return run.get_concrete_function()


def numbers(function, *inputs):
    return [tf.cast(t, tf.float64).numpy() for t in tf.nest.flatten(function(*inputs))]


def floats(values):
    return [tf.constant(value, tf.float32) for value in values]


def assert_close(actual, expected, **tolerance):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, **(tolerance or CLOSE))


def compiled_calls(function):
    """The calls that XLA must compile, and loops that TensorFlow runs itself."""
    operations = function.graph.get_operations()
    calls = [op for op in operations if op.type.endswith("PartitionedCall")]
    compiled = [op for op in calls if op.get_attr("_XlaMustCompile")]
    return len(compiled), sum("While" in op.type for op in operations)


def inputs_of(rng, states, batch=BATCH, steps=STEPS):
    shapes = [(batch, steps, FEATURES), *[(batch, UNITS)] * states]
    return [rng.normal(size=shape) for shape in shapes]
