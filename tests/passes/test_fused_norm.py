"""FusedNorm, most of all by the op, against Keras's own layers, which are the plain reference.

What else there is to say of loops is in test_fused_norm_loops.py.
"""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from crossed import crossed
from norms import (
    BY_LOOPS,
    BY_OP,
    CPU,
    FUSED,
    GPU,
    SHAPES,
    BatchNormalization,
    LayerNormalization,
    Run,
    assert_close,
    assert_same_as_keras,
    second_order,
    statistics,
    twins,
    workload_of,
)

from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.passes.normalization.fused_norm import FusedNorm

pytestmark = pytest.mark.usefixtures("unoptimised")
# How it runs, and what is known of the inputs' sizes while it is traced.
BOTH_WAYS = pytest.mark.parametrize(
    ("by", "known"), [(BY_OP, "channels"), (BY_LOOPS, "samples")], ids=["op", "loops"]
)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_agrees_for_every_rank(shape, rng):
    for training in (True, False):
        fused = assert_same_as_keras(BatchNormalization, shape, rng, {"training": training})
        assert FUSED in fused.ops()


@pytest.mark.parametrize("scale, center", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("trainable", [True, False])
def test_scale_and_center_may_be_off(scale, center, trainable, rng):
    def make():
        return BatchNormalization(scale=scale, center=center, trainable=trainable)

    for shape, training in (((8, 5), True), ((4, 5, 6, 3), True), ((4, 5, 6, 3), False)):
        fused = assert_same_as_keras(make, shape, rng, {"training": training})
        assert FUSED in fused.ops()


@pytest.mark.parametrize("epsilon", [1e-7, 1e-3, 0.1])
@pytest.mark.parametrize("training", [True, False])
def test_epsilon_is_the_layers_own(epsilon, training, rng):
    # Inputs so small that epsilon is most of what they are divided by.
    shape = (8, 3, 3, 4)
    own, layer = twins(lambda: BatchNormalization(epsilon=epsilon), shape, rng)
    for copy in (own, layer):
        copy.moving_variance.assign(np.full(4, 1e-6))
    plain = Run(own, shape, training=training)
    fused = Run(layer, shape, fused=BY_OP, training=training)
    x = tf.cast(rng.normal(size=shape) * 1e-3, tf.float32)
    weights = tf.cast(rng.normal(size=shape), tf.float32)
    assert_close(fused(x, weights)[:1], plain(x, weights)[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("momentum", [0.5, 1.0])
def test_moving_statistics_after_many_steps(momentum, rng):
    assert_same_as_keras(
        lambda: BatchNormalization(momentum=momentum),
        (3, 2, 2, 4),
        rng,
        {"training": True},
        steps=10,
    )


def test_moving_variance_is_the_biased_one(rng):
    layer = BatchNormalization(momentum=0.0)
    layer.build((None, 2))
    fused = Run(layer, (1, 2), fused=BY_OP, training=True)
    for samples in (1, 2, 3, 1000):
        x = rng.normal(3.0, 2.0, (samples, 2)).astype("float32")
        fused(x, np.ones_like(x))
        mean, variance = statistics(layer)
        np.testing.assert_allclose(mean, x.astype("float64").mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(variance, x.astype("float64").var(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 4, 3), (4, 2, 3, 3)], ids=str)
@pytest.mark.parametrize("training", [True, None])
def test_a_frozen_layer_uses_its_moving_statistics(shape, training, rng):
    own, layer = twins(BatchNormalization, shape, rng)
    own.trainable = layer.trainable = False
    before = statistics(layer)
    plain = Run(own, shape, training=training)
    fused = Run(layer, shape, fused=BY_OP, training=training)
    x, weights = (tf.cast(rng.normal(size=shape), tf.float32) for _ in range(2))
    assert_close(fused(x, weights), plain(x, weights))
    for now, then in zip(statistics(layer), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert FUSED in fused.ops()
    assert "FusedBatchNormGradV3" not in fused.ops()


# The reference is Keras in float32 on the same, rounded input: only the output, and
# the gradients that flow through it, may be rounded to 16 bits.
@pytest.mark.parametrize("dtype, unit", [("bfloat16", 2**-8), ("float16", 2**-11)])
@pytest.mark.parametrize("shape, training", [((16, 3), True), ((4, 5, 5, 3), False)], ids=str)
def test_16_bit_inputs_have_float32_statistics(dtype, unit, shape, training, rng):
    own, layer = twins(lambda: BatchNormalization(dtype="float32"), shape, rng)
    layer.dtype_policy = keras.DTypePolicy(f"mixed_{dtype}")
    plain = Run(own, shape, training=training)
    fused = Run(layer, shape, dtype, fused=BY_OP, training=training)
    for _ in range(3):
        x, weights = (tf.cast(rng.normal(size=shape), dtype) for _ in range(2))
        expected = plain(tf.cast(x, tf.float32), tf.cast(weights, tf.float32))
        actual = fused(x, weights)
        assert_close(actual[:2], expected[:2], rtol=2 * unit, atol=2 * unit)
        assert_close(actual[2:], expected[2:], rtol=2 * unit, atol=2e-5)
    assert_close(statistics(layer), statistics(own))
    assert fused.function.structured_outputs[0].dtype == dtype
    (node,) = [op for op in fused.function.graph.get_operations() if op.type == FUSED]
    assert node.inputs[0].dtype == dtype
    assert node.inputs[1].dtype == tf.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_large_16_bit_inputs_do_not_overflow(dtype, rng):
    shape = (32, 2)
    own, layer = twins(lambda: BatchNormalization(dtype=f"mixed_{dtype}"), shape, rng)
    x = tf.cast(rng.normal(3e4, 1e3, shape), dtype)
    weights = tf.ones_like(x)
    plain = Run(own, shape, dtype, training=True)(x, weights)
    fused = Run(layer, shape, dtype, fused=BY_OP, training=True)(x, weights)
    assert np.isfinite(fused[0]).all()
    assert_close(fused[:1], plain[:1], rtol=0.02, atol=0.02)
    assert_close(statistics(layer), statistics(own), rtol=1e-4)


@pytest.mark.parametrize("input_dtype, policy", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_inputs_that_are_not_cast_on_the_way_in(input_dtype, policy, rng):
    fused = assert_same_as_keras(
        lambda: BatchNormalization(
            dtype=f"mixed_{policy}" if policy != "float32" else policy, autocast=False
        ),
        (8, 2, 2, 3),
        rng,
        {"training": True},
        dtype=input_dtype,
        rtol=0.02,
        atol=0.02,
    )
    assert fused.function.structured_outputs[0].dtype == policy
    (node,) = [op for op in fused.function.graph.get_operations() if op.type == FUSED]
    assert node.inputs[0].dtype == tf.float32


@BOTH_WAYS
@pytest.mark.parametrize("training", [True, False])
def test_nan_and_infinity_spread_as_in_keras(by, known, training, rng):
    shape = (4, 3, 3, 3)
    own, layer = twins(BatchNormalization, shape, rng)
    plain = Run(own, shape, training=training, known=known)
    fused = Run(layer, shape, fused=by, training=training, known=known)
    start = layer.get_weights()
    for bad in (np.nan, np.inf, -np.inf):
        for copy in (own, layer):
            copy.set_weights(start)
        x = rng.normal(size=shape).astype("float32")
        x[1, 2, 0, 1] = bad
        actual, expected = fused(x, np.ones_like(x)), plain(x, np.ones_like(x))
        assert_close(actual[:2], expected[:2])
        # gamma's gradient sums products with the inputs, in whatever order.
        np.testing.assert_array_equal(np.isfinite(actual[2]), np.isfinite(expected[2]))
        np.testing.assert_array_equal(np.isnan(statistics(layer)), np.isnan(statistics(own)))


@BOTH_WAYS
@crossed(("shape", "training"), [(0, 3), (0, 2, 2, 3), (2, 0, 2, 3)], [True, False])
def test_an_empty_batch_is_what_it_is_in_keras(by, known, shape, training, rng):
    own, layer = twins(BatchNormalization, shape, rng)
    x = np.zeros(shape, "float32")
    plain = Run(own, shape, training=training)(x, x)
    fused = Run(layer, shape, fused=by, training=training, known=known)(x, x)
    assert fused[0].shape == shape
    assert_close(fused[:2], plain[:2])
    np.testing.assert_array_equal(statistics(layer), statistics(own))
    # Keras multiplies the empty sums by a NaN; here the gradient is what they are.
    assert not fused[2].any()
    assert not fused[3].any()


@BOTH_WAYS
def test_batches_of_several_sizes_through_one_trace(by, known, rng):
    shape = (8, 3, 3, 2)
    own, layer = twins(BatchNormalization, shape, rng)
    plain = Run(own, shape, training=True)
    fused = Run(layer, shape, fused=by, training=True, known=known)
    for size in (8, 8, 3, 1):
        x, weights = (tf.cast(rng.normal(size=(size, *shape[1:])), tf.float32) for _ in range(2))
        assert_close(fused(x, weights), plain(x, weights), rtol=1e-4, atol=1e-4)
        assert_close(statistics(layer), statistics(own))


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (2, 2, 2, 2, 2)], ids=str)
def test_static_shapes(shape, rng):
    fused = assert_same_as_keras(BatchNormalization, shape, rng, {"training": True, "known": "all"})
    assert fused.function.structured_outputs[0].shape == shape


@pytest.mark.parametrize("training, trainable", [(True, True), (False, True), (True, False)])
def test_xla(training, trainable, rng):
    def make():
        return BatchNormalization(trainable=trainable)

    assert_same_as_keras(make, (4, 3, 3, 2), rng, {"training": training}, jit_compile=True)


@crossed(("by", "case"), {"op": BY_OP, "loops": BY_LOOPS}, [((6, 3), False), ((3, 2, 2, 3), True)])
def test_second_order_gradients_of_batch_norm_are_those_of_keras(case, by, rng):
    shape, jit_compile = case
    own, layer = twins(BatchNormalization, shape, rng)
    x = tf.cast(rng.normal(size=shape), tf.float32)
    expected = second_order(lambda x: own(x, training=True), x, own.gamma.value)
    with by.applied(StepContext(workload_of(layer))):
        actual = second_order(lambda x: layer(x, training=True), x, layer.gamma.value, jit_compile)
    assert_close(actual, expected, rtol=1e-3, atol=1e-3 * np.abs(expected[0]).max())


@pytest.mark.parametrize("by", [BY_OP, BY_LOOPS], ids=["op", "loops"])
@pytest.mark.parametrize("trainable", [True, False])
def test_second_order_gradients_with_moving_statistics(trainable, by, rng):
    shape = (3, 2, 2, 3)
    own, layer = twins(lambda: BatchNormalization(trainable=trainable), shape, rng)
    x = tf.cast(rng.normal(size=shape), tf.float32)
    expected = second_order(lambda x: own(x, training=False), x, own.gamma.value)
    with by.applied(StepContext(workload_of(layer))):
        actual = second_order(lambda x: layer(x, training=False), x, layer.gamma.value)
    assert_close(actual, expected, rtol=1e-3, atol=1e-3 * np.abs(expected[0]).max())


@pytest.mark.parametrize("training, trainable", [(True, True), (False, True), (True, False)])
def test_channels_first_on_a_gpu_is_nchw(training, trainable, rng):
    """XLA has the op that a CPU lacks, so the GPU's graph runs here too."""
    shape = (4, 3, 5, 5)
    own, layer = twins(lambda: BatchNormalization(axis=1, trainable=trainable), shape, rng)
    x, weights = (tf.cast(rng.normal(size=shape), tf.float32) for _ in range(2))
    plain = Run(own, shape, jit_compile=True, known="all", training=training)

    fused = Run(
        layer,
        shape,
        jit_compile=True,
        fused=BY_OP,
        device=GPU,
        known="all",
        training=training,
    )
    assert_close(fused(x, weights), plain(x, weights))
    assert_close(statistics(layer), statistics(own))
    (node,) = [op for op in fused.function.graph.get_operations() if op.type == FUSED]
    assert node.get_attr("data_format") == b"NCHW"


def keeps_its_own(layer, shape, dtype="float32", **kwargs):
    fused = Run(layer, shape, dtype, fused=BY_OP, **kwargs)
    return FUSED not in fused.ops()


def test_a_mask_goes_to_keras(rng):
    shape = (4, 5, 3)
    own, layer = twins(BatchNormalization, shape, rng)
    x = tf.cast(rng.normal(size=shape), tf.float32)
    mask = tf.constant(rng.random(shape[:2]) > 0.4)
    assert keeps_its_own(layer, shape, training=True, mask=mask)
    plain = Run(own, shape, training=True, mask=mask)(x, x)
    fused = Run(layer, shape, fused=BY_OP, training=True, mask=mask)(x, x)
    for actual, expected in zip(fused, plain, strict=True):
        np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(statistics(layer), statistics(own))


def test_a_mask_that_keras_hands_on_goes_to_keras(rng):
    def model():
        inputs = keras.Input((5, 2))
        masked = keras.layers.Masking(0.0)(inputs)
        return keras.Model(inputs, BatchNormalization(name="norm")(masked))

    own, other = model(), model()
    other.set_weights(own.get_weights())
    x = rng.normal(size=(3, 5, 2)).astype("float32")
    x[0, 2:] = 0.0
    with BY_OP.applied(StepContext(Workload(other, device=CPU))):
        function = tf.function(lambda x: other(x, training=True)).get_concrete_function(x)
    assert FUSED not in [op.type for op in function.graph.get_operations()]
    np.testing.assert_array_equal(function(x), tf.function(own)(x, training=True))
    assert_close(other.get_weights(), own.get_weights())


def test_a_tensor_for_training_goes_to_keras():
    layer = BatchNormalization()
    layer.build((None, 3))
    with BY_OP.applied(StepContext(workload_of(layer))):
        replaced = vars(layer)["call"]
        # Keras itself can't trace a condition that is a tensor.
        with pytest.raises(Exception, match=r"(?i)tensor|bool"):
            tf.function(lambda x, t: replaced(x, training=t), autograph=False)(
                tf.ones((2, 3)), tf.constant(True)
            )


def test_float64_keeps_keras(rng):
    shape = (5, 3)
    layer = BatchNormalization(dtype="float64")
    layer.build((None, 3))
    assert keeps_its_own(layer, shape, "float64", training=True)
    unsupported = FusedNorm().unsupported(workload_of(layer))
    assert unsupported.kind is Refusal.DTYPE and repr(layer.name) in unsupported.cause


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 4, 5), (1, 3, 1, 1)])
def test_channels_first_on_a_cpu_is_served_by_transposing(rng, shape):
    kwargs = {"training": True, "known": "all"}
    fused = assert_same_as_keras(lambda: BatchNormalization(axis=1), shape, rng, kwargs)
    assert FUSED in fused.ops()
    assert FusedNorm().unsupported(workload_of(BatchNormalization(axis=1), device=GPU)) is None


def test_a_positive_last_axis_is_served(rng):
    fused = assert_same_as_keras(
        lambda: BatchNormalization(axis=3), (2, 3, 4, 5), rng, {"training": True}
    )
    assert FUSED in fused.ops()


def test_a_subclass_that_overrides_nothing_is_served(rng):
    class Mine(BatchNormalization):
        pass

    fused = assert_same_as_keras(Mine, (4, 3), rng, {"training": True})
    assert FUSED in fused.ops()


class Doubled(BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return 2.0 * super().call(inputs, training=training, mask=mask)


class OwnMoments(BatchNormalization):
    def _moments(self, inputs, mask):
        mean, variance = super()._moments(inputs, mask)
        return mean, 4.0 * variance


@pytest.mark.parametrize("kind, method", [(Doubled, "call"), (OwnMoments, "_moments")])
def test_a_subclass_with_maths_of_its_own_is_left_alone(kind, method, rng):
    own, layer = twins(kind, (4, 3), rng)
    assert keeps_its_own(layer, (4, 3), training=True)
    x = tf.cast(rng.normal(size=(4, 3)), tf.float32)
    plain = Run(own, (4, 3), training=True)(x, x)
    assert_close(Run(layer, (4, 3), fused=BY_OP, training=True)(x, x), plain)
    unsupported = FusedNorm().unsupported(workload_of(layer))
    assert unsupported.kind is Refusal.OWN_CODE and f"`{method}`" in unsupported.cause


def test_a_call_that_the_user_replaced_is_left_alone():
    layer = BatchNormalization()
    layer.build((None, 3))
    vars(layer)["call"] = mine = lambda inputs, training=None, mask=None: inputs
    with BY_OP.applied(StepContext(workload_of(layer))):
        assert layer.call is mine
    assert FusedNorm().unsupported(workload_of(layer)).kind is Refusal.OWN_CODE


def test_synchronized_statistics_keep_keras():
    layer = BatchNormalization(synchronized=True)
    layer.build((None, 3))
    assert keeps_its_own(layer, (4, 3), training=True)
    unsupported = FusedNorm().unsupported(workload_of(layer))
    assert unsupported.kind is Refusal.CASE and "synchronized" in unsupported.remedy


def test_renorm_keeps_keras():
    try:
        layer = BatchNormalization(renorm=True)
    except (TypeError, ValueError):
        pytest.skip("this Keras version has no renorm")
    layer.build((None, 3))
    assert keeps_its_own(layer, (4, 3), training=True)
    unsupported = FusedNorm().unsupported(workload_of(layer))
    assert unsupported.kind is Refusal.CASE and "renorm" in unsupported.remedy


# LayerNormalization

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


# The pass


def test_a_model_without_norms_is_refused():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert FusedNorm().unsupported(Workload(model, device=CPU)).kind is Refusal.NOTHING


def test_one_layer_that_can_be_served_is_enough():
    first, second = BatchNormalization(dtype="float64"), BatchNormalization()
    assert FusedNorm().unsupported(workload_of(first, second)) is None
    with BY_OP.applied(StepContext(workload_of(first, second))):
        assert "call" not in vars(first)
        assert "call" in vars(second)


@pytest.mark.parametrize("kind", [BatchNormalization, LayerNormalization])
def test_nothing_is_left_behind(kind):
    layer = kind()
    layer.build((None, 3))
    workload = workload_of(layer)
    before = dict(vars(layer))
    with BY_OP.applied(StepContext(workload)):
        assert "call" in vars(layer)
        tf.function(layer)(tf.ones((2, 3)))
    after = dict(vars(layer))
    # Keras itself notes that a layer was called.
    assert {k: v for k, v in after.items() if not k.startswith("_called")} == {
        k: v for k, v in before.items() if not k.startswith("_called")
    }
    with pytest.raises(RuntimeError, match="inside"), BY_OP.applied(StepContext(workload)):
        raise RuntimeError("inside")
    assert "call" not in vars(layer)
    assert layer.call.__func__ is kind.call
    assert FusedNorm().unsupported(workload) is None
    assert "call" not in vars(layer)


def test_the_plan_survives_json():
    plan = Plan((FusedNorm(loops=False),))
    assert Plan.from_json(plan.to_json()) == plan
    config = {"loops": False}
    assert json.loads(plan.to_json())["passes"][0] == {"name": "fused_norm", "config": config}


def image_model(policy="float32"):
    keras.utils.set_random_seed(3)
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False)(inputs)
    x = keras.layers.ReLU()(BatchNormalization()(x))
    block = keras.Sequential([keras.layers.Dense(6), BatchNormalization(), LayerNormalization()])
    x = block(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, keras.layers.Dense(3, dtype="float32")(x))
    model.compile("sgd", "mse", metrics=["mae"])
    return model


# The laws train models in float32.
@pytest.mark.parametrize(
    "policy, rtol",
    [pytest.param("float32", 1e-4, marks=pytest.mark.slow), ("mixed_bfloat16", 0.1)],
)
def test_training_a_model_agrees(policy, rtol, rng):
    x = rng.normal(size=(20, 8, 8, 3)).astype("float32")
    y = rng.normal(size=(20, 3)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)  # the last is smaller
    own, other = image_model(policy), image_model(policy)
    workload = Workload(other, device=CPU)
    before = [set(vars(layer)) for layer in workload.layers]
    for model, passes in ((own, ()), (other, (BY_OP,))):
        with Plan(passes).applied(StepContext(workload)):
            model.make_train_function(force=True)
            iterator = iter(data.repeat(2))
            for _ in range(6):
                model.train_function(iterator)
    assert_close(other.get_weights(), own.get_weights(), rtol=rtol, atol=rtol)
    assert [set(vars(layer)) for layer in workload.layers] == before
    # Inference of the trained models, each by its own way.
    with BY_OP.applied(StepContext(workload)):
        other.make_predict_function(force=True)
        fused = other.predict_on_batch(x)
    np.testing.assert_allclose(fused, own.predict_on_batch(x), rtol=rtol, atol=rtol)
