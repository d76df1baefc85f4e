"""FusedActivation and its chains against Keras's own activations."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from crossed import crossed

from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.ops.activations import GELU, IDENTITY, RELU, RELU6, SILU
from tfaccel.passes.fused_activation import FusedActivation
from tfaccel.system.device import Device

pytestmark = pytest.mark.usefixtures("unoptimised")
CPU = Device("CPU", "test")
BOTH = pytest.mark.parametrize(
    ("chain", "own"),
    [
        (GELU, keras.activations.gelu),
        (SILU, keras.activations.silu),
        (RELU, keras.activations.relu),
        (RELU6, keras.activations.relu6),
        (IDENTITY, keras.activations.linear),
    ],
)


def workload_of(*layers):
    model = keras.Model()
    model.parts = list(layers)
    return Workload(model, device=CPU)


def derivatives(function, x):
    """The value, and the first three derivatives."""
    with tf.GradientTape() as third:
        third.watch(x)
        with tf.GradientTape() as second:
            second.watch(x)
            with tf.GradientTape() as first:
                first.watch(x)
                y = function(x)
            dy = first.gradient(y, x, tf.cos(x))
        ddy = second.gradient(dy, x)
    return [y, dy, ddy, third.gradient(ddy, x)]


def assert_derivatives_are_keras_own(chain, own, jit_compile, shape, rng):
    x = tf.constant(rng.normal(size=shape) * 4, tf.float32)
    expected = derivatives(own, tf.cast(x, tf.float64))
    for a, e in zip(derivatives(lambda x: chain(x, jit_compile), x), expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-6)


@BOTH
@pytest.mark.parametrize("jit_compile", [False, True])
def test_value_and_derivatives(chain, own, jit_compile, rng):
    assert_derivatives_are_keras_own(chain, own, jit_compile, (3, 5), rng)


# They go through elements one by one, whichever the activation.
@crossed(("shape", "jit_compile"), [(7,), (0, 4), ()], [False, True])
def test_tensors_of_any_shape(shape, jit_compile, rng):
    assert_derivatives_are_keras_own(GELU, keras.activations.gelu, jit_compile, shape, rng)


@BOTH
@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_ends_of_the_line(chain, own, jit_compile):
    x = tf.constant([-1e30, -100.0, -20.0, 0.0, 20.0, 1e4, np.inf, np.nan])
    np.testing.assert_allclose(chain(x, jit_compile), own(x), atol=1e-7)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        made, expected = chain(x[1:-2], jit_compile), own(x[1:-2])
    actual, expected = tape.gradient(made, x), tape.gradient(expected, x)
    np.testing.assert_allclose(
        tf.convert_to_tensor(actual), tf.convert_to_tensor(expected), atol=1e-6
    )


@BOTH
@pytest.mark.parametrize(("dtype", "unit"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_16_bits_are_computed_in_float32(chain, own, dtype, unit, rng):
    x = tf.cast(rng.normal(size=(40,)) * 3, dtype)
    expected = own(tf.cast(x, tf.float64))  # an earlier TensorFlow is coarse far below 0
    for jit_compile in (False, True):
        y = chain(x, jit_compile)
        assert y.dtype == dtype
        np.testing.assert_allclose(tf.cast(y, tf.float32), expected, rtol=unit, atol=1e-7)


LAYERS = {
    "dense": lambda: keras.layers.Dense(4, activation="gelu"),
    "convolution": lambda: keras.layers.Conv1D(4, 3, activation="swish"),
    "activation": lambda: keras.layers.Activation("silu"),
    "einsum": lambda: keras.layers.EinsumDense("abc,cd->abd", (None, 4), activation="gelu"),
}


def traced(layer, spec, passes=()):
    with Plan(passes).applied(StepContext(workload_of(layer))):

        @tf.function(autograph=False)
        def run(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x)
            return y, tape.gradient(y, x)

        return run.get_concrete_function(spec)


def uses_xla(function):
    """Whether a function that XLA compiles is called in the graph."""
    calls = [op.node_def for op in function.graph.get_operations() if "Call" in op.type]
    return any("_XlaMustCompile" in call.attr and call.attr["_XlaMustCompile"].b for call in calls)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("shape", [(None, 6, 3), (None, None, 3)], ids=["batch", "length"])
def test_layers_are_served(make, shape, rng):
    layer = make()
    layer.build(shape)
    spec = tf.TensorSpec(shape)
    plain, fused = traced(layer, spec), traced(layer, spec, [FusedActivation()])
    x = rng.normal(size=(5, 6, 3)).astype("float32")
    expected = plain(x)
    for batch in (5, 2, 0):
        for a, e in zip(fused(x[:batch]), expected, strict=True):
            np.testing.assert_allclose(a, e[:batch], rtol=1e-5, atol=1e-6)
    assert uses_xla(fused) == (shape[1] is not None)
    assert not uses_xla(plain)


class Mine(keras.layers.Dense):
    def call(self, inputs):
        return super().call(inputs) + float(self.activation is keras.activations.gelu)


@pytest.mark.parametrize(
    ("make", "refusal"),
    [
        (lambda: Mine(3, activation="gelu"), Refusal.OWN_CODE),
        (lambda: keras.layers.Dense(3, activation="gelu", dtype="float64"), Refusal.DTYPE),
        (lambda: keras.layers.LSTM(3, activation="gelu"), Refusal.CASE),
    ],
    ids=["subclass", "float64", "loop"],
)
def test_layers_that_keep_keras(make, refusal):
    layer = make()
    unsupported = FusedActivation().unsupported(workload_of(layer))
    assert unsupported.kind is refusal and repr(layer.name) in unsupported.cause
    with FusedActivation().applied(StepContext(workload_of(layer))):
        assert layer.activation is keras.activations.gelu


def test_models_without_use_are_refused():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="relu")])
    unsupported = FusedActivation().unsupported(Workload(model, device=CPU))
    assert unsupported.kind is Refusal.NOTHING
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="gelu")])
    model.compile(jit_compile=True)
    unsupported = FusedActivation().unsupported(Workload(model, device=CPU))
    assert unsupported.kind is Refusal.NO_USE


def test_nothing_is_left_behind():
    layer = keras.layers.Dense(3, activation="gelu")
    before = dict(vars(layer))
    with FusedActivation().applied(StepContext(workload_of(layer))):
        assert layer.activation is not keras.activations.gelu
    assert dict(vars(layer)) == before
