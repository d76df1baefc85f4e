"""FusedNorm's BatchNormalization against Keras's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from crossed import crossed
from early import built_early
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
from tfaccel.core.workload import Workload

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
    return built_early(model)


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
