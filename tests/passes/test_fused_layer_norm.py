"""FusedNorm's LayerNormalization against Keras's own."""

import numpy as np
import pytest
import tensorflow as tf
from norms import (
    BY_OP,
    LayerNormalization,
    Run,
    assert_close,
    assert_same_as_keras,
    second_order,
    twins,
    workload_of,
)

from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal
from tfaccel.passes.normalization.fused_norm import FusedNorm

pytestmark = pytest.mark.usefixtures("unoptimised")


LN_SHAPES = [(4, 6), (3, 5, 7), (1, 1), (2, 2, 2, 2, 3)]


@pytest.mark.parametrize("shape", LN_SHAPES, ids=str)
def test_layer_norm_agrees_for_every_rank(shape, rng):
    fused = assert_same_as_keras(LayerNormalization, shape, rng, {})
    assert "SquaredDifference" not in fused.ops()  # which Keras's own has


@pytest.mark.parametrize("scale, center", [(True, False), (False, True), (False, False)])
def test_layer_norm_options(scale, center, rng):
    def make():
        return LayerNormalization(scale=scale, center=center, epsilon=1e-7)

    assert_same_as_keras(make, (4, 3, 16), rng, {})


@pytest.mark.parametrize("dtype, unit", [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_layer_norm_of_16_bit_inputs(dtype, unit, rng):
    fused = assert_same_as_keras(
        lambda: LayerNormalization(dtype=f"mixed_{dtype}"),
        (4, 3, 16),
        rng,
        {},
        dtype=dtype,
        rtol=2 * unit,
        atol=4 * unit,
    )
    assert "SquaredDifference" not in fused.ops()
    assert fused.function.structured_outputs[0].dtype == dtype


def test_layer_norm_spreads_nan_as_keras(rng):
    own, layer = twins(LayerNormalization, (3, 4), rng)
    plain, fused = Run(own, (3, 4)), Run(layer, (3, 4), fused=BY_OP)
    for bad in (np.nan, np.inf):
        x = rng.normal(size=(3, 4)).astype("float32")
        x[1, 2] = bad
        actual = fused(x, np.ones_like(x))
        assert_close(actual, plain(x, np.ones_like(x)))
        assert np.isnan(actual[0][1]).all()


def test_layer_norm_of_nothing(rng):
    own, layer = twins(LayerNormalization, (0, 4), rng)
    x = np.zeros((0, 4), "float32")
    assert_close(Run(layer, (0, 4), fused=BY_OP)(x, x), Run(own, (0, 4))(x, x))


def test_layer_norm_by_xla(rng):
    assert_same_as_keras(LayerNormalization, (3, 4, 8), rng, {}, jit_compile=True)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_second_order_gradients_of_layer_norm_are_those_of_keras(jit_compile, rng):
    own, layer = twins(LayerNormalization, (4, 6), rng)
    x = tf.cast(rng.normal(size=(4, 6)), tf.float32)
    expected = second_order(own, x, own.gamma.value)
    with BY_OP.applied(StepContext(workload_of(layer))):
        actual = second_order(layer, x, layer.gamma.value, jit_compile)
    assert_close(actual, expected, rtol=1e-3, atol=1e-3 * np.abs(expected[0]).max())


def test_layer_norm_gradients_are_those_of_finite_differences(rng):
    (layer,) = twins(LayerNormalization, (1, 5), rng, copies=1)
    x, weights = rng.normal(size=(1, 5)), rng.normal(size=(1, 5))
    gamma, beta = layer.gamma.numpy().astype("float64"), layer.beta.numpy().astype("float64")

    def value(x):
        normal = (x - x.mean()) / np.sqrt(x.var() + layer.epsilon)
        return float((weights * (normal * gamma + beta)).sum())

    steps = 1e-6 * np.eye(5)[:, None, :]
    expected = [(value(x + step) - value(x - step)) / 2e-6 for step in steps]
    fused = Run(layer, (1, 5), fused=BY_OP)
    actual = fused(tf.cast(x, tf.float32), tf.cast(weights, tf.float32))[1]
    np.testing.assert_allclose(actual[0], expected, rtol=1e-4, atol=1e-4)


class DoubledLayerNorm(LayerNormalization):
    def call(self, inputs):
        return 2.0 * super().call(inputs)


@pytest.mark.parametrize(
    "make, shape, refusal, named",
    [
        (lambda: LayerNormalization(axis=[1, 2]), (3, 4, 5), Refusal.CASE, "[1, 2]"),
        (lambda: LayerNormalization(dtype="float64"), (3, 4), Refusal.DTYPE, "float64"),
        (lambda: LayerNormalization(rms_scaling=True), (3, 4), Refusal.CASE, "rms_scaling"),
        (DoubledLayerNorm, (3, 4), Refusal.OWN_CODE, "`call`"),
    ],
    ids=["axes", "float64", "rms_scaling", "subclass"],
)
@pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`")
def test_layer_norms_that_keep_keras(make, shape, refusal, named):
    layer = make()
    layer.build((None, *shape[1:]))
    unsupported = FusedNorm().unsupported(workload_of(layer))
    assert unsupported.kind is refusal
    assert repr(layer.name) in unsupported.cause and named in unsupported.cause
    with BY_OP.applied(StepContext(workload_of(layer))):
        assert "call" not in vars(layer)


def test_layer_norm_of_another_axis_keeps_keras(rng):
    assert_same_as_keras(lambda: LayerNormalization(axis=1), (3, 4, 5), rng, {"known": "all"})
