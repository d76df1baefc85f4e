"""`mixed_precision` in float16 on two replicas, which have one loss scale."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tfaccel.passes import MixedPrecision
from tfaccel.passes.precision.loss_scale import LossScale


@pytest.fixture(scope="module")
def strategy():
    return tfaccel.AccelStrategy("mirrored").strategy


def test_it_trains_as_in_float32(strategy):
    def trained(*callbacks):
        keras.utils.set_random_seed(7)
        with strategy.scope():
            hidden = keras.layers.Dense(16, activation="relu")
            model = keras.Sequential([keras.Input((8,)), hidden, keras.layers.Dense(1)])
            model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
        x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
        how = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0}
        return model.fit(x, x[:, :1], callbacks=callbacks, **how).history["loss"]

    accel = tfaccel.AccelCallback([MixedPrecision("float16")], verbose=0, cache_dir=False)
    found = trained(accel)
    assert accel.plan.names == ("mixed_precision",)
    np.testing.assert_allclose(found, trained(), rtol=1e-2)


@pytest.mark.parametrize("overflowing", [0, 1])
def test_an_overflow_on_one_replica_is_one_on_all(strategy, overflowing):
    scale = LossScale(strategy)
    with strategy.scope():
        variable = keras.Variable(np.zeros(3, "float32"))
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build([variable])

    def on_replica(limit):
        context = tf.distribute.get_replica_context()
        is_one = tf.equal(context.replica_id_in_sync_group, overflowing)
        loss = optimizer.scale_loss(tf.constant(1.0))
        optimizer.apply([tf.where(is_one, limit, 1.0) * loss * tf.ones(3)], [variable])

    with scale.applied([optimizer]):
        step = tf.function(lambda limit: strategy.run(on_replica, args=(limit,)))
        step(tf.constant(np.inf))
        assert np.array_equal(variable.numpy(), np.zeros(3))
        assert values(strategy, scale.value) == [2.0**14] * 2
        step(tf.constant(1.0))
    assert np.array_equal(variable.numpy(), np.full(3, -2.0))
    assert values(strategy, scale.value) == [2.0**14] * 2
    assert values(strategy, scale.good_steps) == [1] * 2


def values(strategy, variable):
    return [float(one.numpy()) for one in strategy.experimental_local_results(variable)]
