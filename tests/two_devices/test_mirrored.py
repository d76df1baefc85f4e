"""AccelStrategy over MirroredStrategy, on two logical CPUs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfaccel.distribute import AccelStrategy, Mirrored


def images(samples):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, samples)
    x = rng.normal(size=(samples, 8, 8, 3)) + labels[:, None, None, None] * 0.5
    return x.astype("float32"), labels


def cnn(synchronized=False):
    keras.utils.set_random_seed(7)
    normal = keras.layers.BatchNormalization(synchronized=synchronized, momentum=0.5)
    layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), normal, keras.layers.ReLU()]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    return model


def local(variable):
    """The copies of a Keras variable, one for each replica."""
    return [copy.numpy() for copy in variable.value.values]


@pytest.fixture(scope="module")
def strategy():
    return AccelStrategy()


def test_auto_takes_all_devices(strategy):
    assert isinstance(strategy.strategy, Mirrored)
    assert strategy.num_replicas_in_sync == 2
    assert strategy.reason == "TensorFlow sees CPU:0, CPU:1"
    assert strategy.global_batch_size(16) == 32
    assert strategy.is_chief
    assert "2 replicas" in repr(strategy)


@pytest.mark.parametrize("name", ["mirrored", "one_device", "default"])
def test_names(name):
    replicas = {"mirrored": 2, "one_device": 1, "default": 1}
    assert AccelStrategy(name).num_replicas_in_sync == replicas[name]


def test_training_is_that_of_one_device(strategy):
    x, y = images(80)
    arguments = {"batch_size": 32, "epochs": 2, "shuffle": False, "verbose": 0}
    reference = cnn(synchronized=True).fit(x, y, validation_data=(x[:41], y[:41]), **arguments)
    with strategy.scope():
        model = cnn(synchronized=True)
    history = model.fit(x, y, validation_data=(x[:41], y[:41]), **arguments)
    assert len(history.history) == 4
    for a, b in zip(history.history.values(), reference.history.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize(
    "kind",
    ["numpy", *(pytest.param(k, marks=pytest.mark.slow) for k in ("distributed", "dataset"))],
)
def test_statistics_are_averaged(strategy, kind):
    """After one step from zero: the mean of what each half would have given."""
    x, y = images(32)
    with strategy.scope():
        model = cnn()
    convolved = model.layers[0](x).numpy()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(32)
    if kind == "numpy":
        model.fit(x, y, batch_size=32, shuffle=False, verbose=0)
    else:
        model.fit(dataset if kind == "dataset" else strategy.distribute(dataset), verbose=0)
    halves = np.split(convolved, 2)
    mean = np.mean([half.mean((0, 1, 2)) for half in halves], 0)
    variance = np.mean([half.var((0, 1, 2)) for half in halves], 0)
    for copy in local(model.layers[1].moving_mean):
        np.testing.assert_allclose(copy, mean / 2, rtol=1e-4, atol=1e-6)
    for copy in local(model.layers[1].moving_variance):
        np.testing.assert_allclose(copy, (1 + variance) / 2, rtol=1e-4)


# A replica without data is below, and workers have such batches in test_multi_worker.py.
@pytest.mark.slow
@pytest.mark.parametrize("samples", [33, 41])
def test_uneven_last_batches(strategy, samples):
    """TensorFlow's own way gives one of two replicas an empty batch of the 33rd sample."""
    x, y = images(samples)
    with strategy.scope():
        model = cnn()
    history = model.fit(x, y, batch_size=32, epochs=2, validation_data=(x, y), verbose=0).history
    assert np.isfinite(list(history.values())).all()
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert model.predict(x, batch_size=32, verbose=0).shape == (samples, 3)


class Reconstruction(keras.Model):
    """Without targets: the batch that builds it is no tuple."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(4)

    def call(self, inputs):
        outputs = self.dense(inputs)
        self.add_loss(keras.ops.mean((outputs - inputs) ** 2))
        return outputs


@pytest.mark.parametrize(
    "kind", ["array", *(pytest.param(k, marks=pytest.mark.slow) for k in ("tuples", "dataset"))]
)
def test_a_first_batch_that_is_shared_unequally(strategy, kind):
    """Plain MirroredStrategy fails here: https://github.com/keras-team/keras/issues/19246."""
    x = np.random.default_rng(0).random((17, 4), "float32")
    datasets = {"dataset": x, "tuples": (x,), "array": x}
    dataset = tf.data.Dataset.from_tensor_slices(datasets[kind]).batch(32)
    with strategy.scope():
        model = Reconstruction()
        model.compile("sgd")
    loss = model.fit(x if kind == "array" else dataset, verbose=0).history["loss"]
    assert np.isfinite(loss).all()


def test_reductions(strategy):
    def value(context):
        return tf.constant([1.0, 2.0]) * (context.replica_id_in_sync_group + 1)

    vector = strategy.experimental_distribute_values_from_function(value)
    assert strategy.reduce("MEAN", vector, axis=None).numpy().tolist() == [1.5, 3.0]
    assert strategy.reduce("MEAN", vector, axis=0).numpy() == 2.25
    assert strategy.reduce("SUM", {"v": vector}, axis=None)["v"].numpy().tolist() == [3.0, 6.0]
    scalar = strategy.run(lambda: tf.constant(3.0))
    assert strategy.reduce(tf.distribute.ReduceOp.MEAN, scalar, axis=0).numpy() == 3.0
    assert strategy.reduce("SUM", [scalar], axis=0)[0].numpy() == 6.0


@pytest.mark.slow
def test_eager_steps(strategy):
    x, y = images(48)
    arguments = {"batch_size": 16, "shuffle": False, "verbose": 0}
    with strategy.scope():
        model, reference = (cnn() for _ in range(2))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss, run_eagerly=True)
    expected = reference.fit(x, y, **arguments).history["loss"]
    np.testing.assert_allclose(model.fit(x, y, **arguments).history["loss"], expected, rtol=1e-4)
    for a, b in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    copies = local(model.layers[1].moving_mean)
    np.testing.assert_array_equal(*copies)


def test_predictions_are_in_order(strategy):
    x, _ = images(41)
    with strategy.scope():
        model = cnn()
    np.testing.assert_allclose(
        model.predict(x, batch_size=16, verbose=0), model(x, training=False), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_mixed_precision(precision):
    strategy = AccelStrategy(mixed_precision=precision)
    with strategy.scope():
        model = cnn()
    assert keras.config.dtype_policy().name == "float32"
    assert model.layers[0].dtype_policy.name == f"mixed_{precision}"
    x, y = images(32)
    history = model.fit(x, y, batch_size=16, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (precision == "float16")


def test_a_training_loop_of_ones_own(strategy):
    dataset = strategy.experimental_distribute_dataset(tf.data.Dataset.range(1, 9).batch(4))
    with strategy.scope():
        variable = tf.Variable(0, dtype=tf.int64, aggregation=tf.VariableAggregation.SUM)

    @tf.function
    def step(batch):
        def one(share):
            variable.assign_add(tf.reduce_sum(share))
            return tf.reduce_sum(share), share

        return strategy.run(one, args=(batch,))

    batches = [step(batch) for batch in dataset]
    assert int(variable.numpy()) == 36
    sums, shares = batches[0]
    assert int(strategy.reduce("SUM", sums, axis=None)) == 10
    assert strategy.gather(shares, axis=0).numpy().tolist() == [1, 2, 3, 4]
    assert [int(v) for v in strategy.experimental_local_results(sums)] == [3, 7]
    values = strategy.experimental_distribute_values_from_function(
        lambda context: context.replica_id_in_sync_group
    )
    assert list(strategy.experimental_local_results(values)) == [0, 1]


def test_datasets_from_a_function(strategy):
    dataset = strategy.distribute_datasets_from_function(
        lambda context: tf.data.Dataset.range(4).batch(context.get_per_replica_batch_size(2))
    )
    first = strategy.experimental_local_results(next(iter(dataset)))
    assert [v.numpy().tolist() for v in first] == [[0], [1]]


def test_scope_is_the_strategys_own(strategy):
    assert not tf.distribute.has_strategy()
    with strategy.scope() as entered, strategy.scope():
        assert entered is strategy
        assert tf.distribute.get_strategy() is strategy.strategy
        variable = tf.Variable(1.0)
    assert not tf.distribute.has_strategy()
    assert len(variable.values) == 2
    assert strategy.extended is strategy.strategy.extended
    assert isinstance(strategy, tf.distribute.Strategy)


def test_only_statistics_are_averaged(strategy):
    with strategy.scope():
        model = cnn()
        counter = keras.Variable(np.zeros(2, "float32"), trainable=False, name="counter")
    aggregations = {v.name: v.value.aggregation for v in model.variables}
    assert aggregations["moving_mean"] == tf.VariableAggregation.MEAN
    assert aggregations["moving_variance"] == tf.VariableAggregation.MEAN
    assert aggregations["gamma"] == counter.value.aggregation == tf.VariableAggregation.NONE


def test_a_plain_strategy_is_taken_as_it_is():
    plain = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert AccelStrategy(plain).strategy is plain
    assert AccelStrategy(AccelStrategy(plain)).strategy is plain


def test_xla_on_several_replicas():
    with pytest.raises(ValueError, match="jit_compile=True does not work with 2 replicas"):
        AccelStrategy(jit_compile=True)
    assert AccelStrategy("one_device", jit_compile=True).jit_compile is True


def test_a_batch_smaller_than_the_replicas(strategy):
    dataset = tf.data.Dataset.range(8).batch(1, drop_remainder=True)
    with pytest.raises(ValueError, match="a sample for each of the 2 replicas.*batches of 1"):
        strategy.distribute(dataset)


def test_no_auto_sharding(strategy):
    """`off` leaves the dataset to TensorFlow, which splits batches among the replicas."""
    dataset = strategy.distribute(tf.data.Dataset.range(4).batch(4), auto_shard_policy="off")
    first = strategy.experimental_local_results(next(iter(dataset)))
    assert [v.numpy().tolist() for v in first] == [[0, 1], [2, 3]]


def convolutional():
    """Every kind of operation that some kernel on a CPU can't do with an empty batch."""
    keras.utils.set_random_seed(7)
    layers = keras.layers
    body = [
        layers.Conv2D(6, 3, activation="relu"),
        layers.DepthwiseConv2D(3, padding="same"),
        layers.Conv2DTranspose(4, 3),
        layers.MaxPooling2D(2),
        layers.SeparableConv2D(5, 3),
        layers.Flatten(),
        layers.Dense(3),
    ]
    model = keras.Sequential([keras.Input((8, 8, 3)), *body])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    return model


def test_a_replica_without_data(strategy):
    """TensorFlow gives the one sample to the first replica, and none to the second."""
    x, y = images(1)
    with strategy.scope():
        model = convolutional()
    reference = convolutional()
    before = model.get_weights()
    data = strategy.distribute(tf.data.Dataset.from_tensor_slices((x, y)).batch(4), "off")
    evaluation = reference.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(model.evaluate(data, verbose=0), evaluation, rtol=1e-5)
    losses = reference.fit(x, y, verbose=0).history["loss"]
    np.testing.assert_allclose(model.fit(data, verbose=0).history["loss"], losses, rtol=1e-5)
    # The step's gradient is the mean of the replicas', and the second's is zero.
    for old, new, alone in zip(before, model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(new - old, (alone - old) / 2, rtol=1e-3, atol=1e-6)
    reference.set_weights(model.get_weights())
    x, _ = images(33)
    np.testing.assert_allclose(
        model.predict(x, batch_size=32, verbose=0),
        reference.predict(x, verbose=0),
        rtol=1e-4,
        atol=1e-5,
    )
