"""Running statistics are the mean over the replicas, and a step asks for it once."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfaccel.distribute import AccelStrategy

MOMENTUM = 0.5


@pytest.fixture(scope="module")
def strategy():
    return AccelStrategy("mirrored", mixed_precision=False)


def halves():
    """Each replica's share of a batch."""
    return np.split(np.random.default_rng(0).normal(size=(8, 3)).astype("float32"), 2)


def normalization(strategy, calls):
    """A layer, and a step that calls it so many times on what it is given."""
    with strategy.scope():
        layer = keras.layers.BatchNormalization(momentum=MOMENTUM)
        layer.build((None, 3))

    def step(share):
        for call in range(calls):
            layer(share + call, training=True)

    return layer, step


def expected(shares, calls):
    mean, variance = np.zeros(3), np.ones(3)
    for call in range(calls):
        mean += (np.mean([(share + call).mean(0) for share in shares], 0) - mean) * MOMENTUM
        variance += (np.mean([share.var(0) for share in shares], 0) - variance) * MOMENTUM
    return mean, variance


def assert_statistics(layer, mean, variance):
    for variable, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        parts = [part.numpy() for part in variable.value.values]
        np.testing.assert_allclose(parts[0], value, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(parts[0], parts[1])


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("eager", [False, True])
def test_of_a_layer_that_is_called_several_times(strategy, calls, eager):
    layer, step = normalization(strategy, calls)
    shares = halves()
    data = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(shares[context.replica_id_in_sync_group])
    )
    run = strategy.run if eager else tf.function(strategy.run)
    run(step, args=(data,))
    assert_statistics(layer, *expected(shares, calls))


def test_one_reduction_a_step(strategy, monkeypatch):
    reductions = []
    own = tf.distribute.ReplicaContext.all_reduce

    def counted(context, reduce_op, value, options=None):
        if reduce_op == tf.distribute.ReduceOp.MEAN:
            reductions.append(len(value))
        return own(context, reduce_op, value, options)

    monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", counted)
    with strategy.scope():
        norms = [keras.layers.BatchNormalization() for _ in range(3)]
        model = keras.Sequential([keras.Input((3,)), *norms, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    model.train_on_batch(np.concatenate(halves()), np.zeros((8, 1)))
    assert reductions == [6, 6]  # by each replica, all statistics of the three layers
    reductions.clear()
    model.evaluate(np.concatenate(halves()), np.zeros((8, 1)), verbose=0)
    assert not reductions


def test_statistics_may_be_copied_and_let_go(strategy):
    layer, _ = normalization(strategy, 1)
    with strategy.scope():
        other = keras.layers.BatchNormalization.from_config(layer.get_config())
        other.build((None, 3))
    layer.moving_mean.assign(np.arange(3.0))
    other.set_weights(layer.get_weights())
    np.testing.assert_array_equal(other.moving_mean, np.arange(3.0))


class Copying(keras.Model):
    """Keeps a copy of a statistic, under a name that is not averaged, as averages of weights do."""

    def __init__(self):
        super().__init__()
        self.norm, self.last = keras.layers.BatchNormalization(), keras.layers.Dense(1)
        self.copied = self.add_weight(shape=(3,), trainable=False, name="copied")

    def call(self, x, training=None):
        return self.last(self.norm(x, training=training))

    def train_step(self, data):
        logs = super().train_step(data)
        self.copied.assign(self.norm.moving_mean)
        return logs


@pytest.mark.parametrize("scaled", [False, True])
def test_a_copy_that_a_step_makes_is_averaged(strategy, scaled):
    with strategy.scope():
        model = Copying()
        sgd = keras.optimizers.SGD()
        model.compile(keras.optimizers.LossScaleOptimizer(sgd) if scaled else sgd, "mse")
    model.fit(np.concatenate(halves()), np.zeros((8, 1)), batch_size=8, verbose=0)
    first, second = (part.numpy() for part in model.copied.value.values)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, model.norm.moving_mean)
