"""AccelStrategy where there is one device, and the parts that choose and set up."""

import json
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from crossed import crossed

from tfaccel.distribute import AccelStrategy
from tfaccel.distribute.splitting import can_split, even_shares


def small_model(**arguments):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", "mse", **arguments)
    return model


# --- which strategy -----------------------------------------------------------------


def test_auto_on_one_device_is_the_default(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    strategy = AccelStrategy()
    assert strategy.strategy is tf.distribute.get_strategy()
    assert strategy.reason == "TensorFlow sees CPU:0 only"
    with strategy.scope():
        # So that Keras chooses XLA by itself, as it does under no strategy.
        assert not tf.distribute.has_strategy()
        model = small_model(jit_compile=strategy.jit_compile)
    x = np.ones((8, 4), "float32")
    assert model.fit(x, x[:, :1], verbose=0).history["loss"]


def test_a_strategy_is_taken_as_it_is():
    one = tf.distribute.OneDeviceStrategy("CPU:0")
    strategy = AccelStrategy(one)
    assert strategy.strategy is one
    assert strategy.reason == "it was given"
    with strategy.scope():
        model = small_model()
    assert model.distribute_strategy is one
    x = np.ones((9, 4), "float32")
    assert model.fit(x, x[:, :1], batch_size=4, validation_data=(x, x[:, :1]), verbose=0)


@pytest.mark.parametrize("bad", ["mirored", 3, None])
def test_no_such_strategy(bad):
    with pytest.raises(ValueError, match="strategy must be a tf.distribute.Strategy or one of"):
        AccelStrategy(bad)


def test_several_workers_too_late(monkeypatch):
    tf.constant(1.0)
    task = {"type": "worker", "index": 0}
    cluster = {"worker": ["localhost:1", "localhost:2"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    with pytest.raises(RuntimeError, match="only be joined before TensorFlow is used"):
        AccelStrategy()


def test_a_plain_multi_worker_strategy_cant_be_mended():
    plain = tf.distribute.MultiWorkerMirroredStrategy()
    assert AccelStrategy(plain).strategy is plain  # alone, it needs no mending
    several = types.new_class("Several", (tf.distribute.MultiWorkerMirroredStrategy,))
    several.num_replicas_in_sync = 2
    with pytest.raises(ValueError, match='Pass strategy="multi_worker"'):
        AccelStrategy(several())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixed_precision": "float17"}, "`mixed_precision` must be"),
        ({"mixed_precision": True}, "`mixed_precision` must be"),
        ({"jit_compile": "yes"}, "`jit_compile` must be"),
        ({"data_format": "NHWC"}, "`data_format` must be"),
        ({"auto_shard_policy": "files"}, "`auto_shard_policy` must be one of"),
        ({"memory_growth": 1}, "`memory_growth` must be True or False"),
        ({"memory_limit_bytes": 4096}, "at least 1048576"),
        ({"memory_limit_bytes": 1.5e9}, "`memory_limit_bytes` must be an int"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        AccelStrategy(**arguments)


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "8"])
def test_bad_batch_sizes(bad):
    with pytest.raises(ValueError, match="`per_replica_batch_size` must be a positive"):
        AccelStrategy("default").global_batch_size(bad)


# --- datasets -----------------------------------------------------------------------


def test_bad_datasets():
    strategy = AccelStrategy("default")
    with pytest.raises(TypeError, match="Received: ndarray"):
        strategy.distribute(np.ones(3))
    with pytest.raises(ValueError, match="batch it by"):
        strategy.distribute(tf.data.Dataset.range(3))
    with pytest.raises(ValueError, match="auto, data, file, off.*Received: 'shard'"):
        strategy.distribute(tf.data.Dataset.range(3).batch(2), "shard")
    one = AccelStrategy("one_device")
    distributed = one.distribute(tf.data.Dataset.range(3).batch(2))
    with pytest.raises(TypeError, match="one that is distributed"):
        one.distribute(distributed)


@pytest.mark.parametrize("policy", ["auto", "data", "file", "off", None])
def test_one_device_gets_everything(policy):
    strategy = AccelStrategy("one_device", auto_shard_policy="data")
    batches = strategy.distribute(tf.data.Dataset.range(5).batch(2), policy)
    assert [batch.numpy().tolist() for batch in batches] == [[0, 1], [2, 3], [4]]


def shares_of(dataset, replicas, fill=True):
    """By replica, what even_shares gives it, one worker for each."""
    return [list(even_shares(dataset, replicas, range(i, i + 1), fill)) for i in range(replicas)]


@crossed(("replicas", "samples"), [2, 3, 4], [24, 25, 28, 31])
def test_shares_are_even_and_whole(samples, replicas):
    dataset = tf.data.Dataset.range(samples).batch(12)
    shares = shares_of(dataset, replicas, fill=False)
    for step, batch in enumerate(dataset):
        parts = [share[step].numpy() for share in shares]
        np.testing.assert_array_equal(np.concatenate(parts), batch)
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("replicas", [3, 5])
def test_a_batch_too_small_is_filled(replicas):
    dataset = tf.data.Dataset.range(14).batch(12)
    last = [share[-1].numpy().tolist() for share in shares_of(dataset, replicas)]
    assert last == [[12], [13], [12], [13], [12]][:replicas]
    unfilled = [share[-1].numpy() for share in shares_of(dataset, replicas, fill=False)]
    assert np.concatenate(unfilled).tolist() == [12, 13]


def test_several_replicas_of_one_worker_in_turn():
    dataset = tf.data.Dataset.range(8).batch(4)
    shares = even_shares(dataset, 4, range(2, 4), fill=True)
    assert [share.numpy().tolist() for share in shares] == [[2], [3], [6], [7]]


def test_structures_ragged_and_sparse():
    ragged = tf.ragged.constant([[1], [2, 3], [], [4]])
    sparse = tf.sparse.from_dense([[0, 1], [2, 0], [0, 0], [3, 4]])
    data = ({"r": ragged, "s": sparse}, tf.range(4), None)
    dataset = tf.data.Dataset.from_tensors(data)
    first, second = (next(iter(share)) for share in shares_of(dataset, 2))
    assert first[0]["r"].to_list() == [[1], [2, 3]]
    assert second[0]["r"].to_list() == [[], [4]]
    assert tf.sparse.to_dense(second[0]["s"]).numpy().tolist() == [[0, 0], [3, 4]]
    assert second[1].numpy().tolist() == [2, 3]
    assert second[2] is None


def test_lengths_and_static_shapes_stay_known():
    dataset = tf.data.Dataset.range(24).batch(12, drop_remainder=True)
    shares = even_shares(dataset, 3, range(1), fill=True)
    assert shares.element_spec.shape == (4,)
    assert int(shares.cardinality()) == 2
    endless = even_shares(dataset.repeat(), 3, range(2), fill=True)
    assert int(endless.cardinality()) == tf.data.INFINITE_CARDINALITY


def test_what_can_be_split():
    assert can_split(tf.data.Dataset.range(4).batch(2))
    assert not can_split(tf.data.Dataset.range(4))
    assert not can_split(tf.data.Dataset.from_tensors((tf.zeros((2, 2)), 1.0)))
