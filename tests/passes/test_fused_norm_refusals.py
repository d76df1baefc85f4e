"""Where FusedNorm leaves a layer to Keras, and what it leaves behind."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from norms import (
    BY_OP,
    CPU,
    FUSED,
    GPU,
    BatchNormalization,
    LayerNormalization,
    Run,
    assert_close,
    assert_same_as_keras,
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


def test_loops_are_on_off_or_left_to_the_length():
    with pytest.raises(TypeError, match=r"`loops` must be .* Received: 'some'"):
        FusedNorm(loops="some")
