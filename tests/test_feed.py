"""Batches that are taken out of an iterator and fed back."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from tfaccel.core.workload import CannotReplayError, batch_size, replay, shapes
from tfaccel.steps.replay import feed, is_plain, kept, pull

Pair = collections.namedtuple("Pair", ["x", "y"])


def sparse(batch):
    return tf.sparse.from_dense(batch)


def ragged(batch):
    return tf.RaggedTensor.from_tensor(batch, padding=0.0)


KINDS = {
    "a tensor": lambda x: x,
    "a pair": lambda x: (x, x),
    "a named tuple": lambda x: Pair(x, x),
    "dictionaries": lambda x: ({"a": x, "b": (x, x)}, x),
    "with weights": lambda x: (x, x, x[:, 0]),
    "with None": lambda x: (x, None),
    "integers and strings": lambda x: (tf.cast(x, tf.int32), tf.strings.as_string(x)),
    "a sparse tensor": lambda x: (sparse(x), x),
    "a ragged tensor": lambda x: (ragged(x), x),
}


def dataset_of(kind):
    x = np.arange(30, dtype="float32").reshape(10, 3)
    return tf.data.Dataset.from_tensor_slices(x).batch(4).map(KINDS[kind])


def values(batch):
    flat = tf.nest.flatten(batch, expand_composites=True)
    return [t.numpy().tolist() for t in flat if t is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_fed_batches_are_the_same_batches_under_the_same_spec(kind):
    dataset = dataset_of(kind)
    iterator = iter(dataset)
    fed = feed(pull(iterator, 10), iterator)
    assert fed.element_spec == iterator.element_spec
    for expected, found in zip(dataset, fed, strict=True):
        assert values(found) == values(expected)


def test_a_fed_batch_meets_the_same_trace():
    dataset, traces = dataset_of("a pair"), []

    @tf.function(reduce_retracing=True)
    def step(iterator):
        traces.append(1)
        return tf.reduce_sum(next(iterator)[0])

    iterator = iter(dataset)
    batches = pull(iterator, 1)
    fed = [float(step(feed(batches, iterator))), float(step(iterator))]
    assert fed == [66.0, 210.0]
    assert len(traces) == 1


def test_pull_gives_what_is_left_and_then_the_end():
    iterator = iter(dataset_of("a pair"))
    assert [batch_size(b) for b in pull(iterator, 2)] == [4, 4]
    assert [batch_size(b) for b in pull(iterator, 2)] == [2]
    with pytest.raises(StopIteration):
        pull(iterator, 2)


def test_replay_repeats():
    dataset = dataset_of("dictionaries")
    kept = tuple(dataset)
    again = replay(kept, dataset.element_spec).repeat(2)
    assert [values(b) for b in again] == [values(b) for b in kept] * 2


def test_what_tf_data_can_t_hold_is_told_so():
    with pytest.raises(CannotReplayError, match="can't be kept"):
        replay((object(),), tf.TensorSpec(()))


def test_plain_iterators():
    assert is_plain(iter(dataset_of("a tensor")))
    assert not is_plain(iter([1, 2]))


def test_shapes_tell_partial_batches_apart():
    batches = list(dataset_of("dictionaries"))
    assert shapes(batches[0]) == shapes(batches[1]) != shapes(batches[2])


def autotunes(dataset):
    """Whether iterators of a dataset have a thread for autotuning; TensorFlow's default is yes."""
    return dataset.options().autotune.enabled is not False


def slow_kept(batches, spec, **forever):
    """What is kept where tf.data can't hold the batches as they are."""
    return kept((*batches, object()), spec, **forever)


@pytest.mark.parametrize("make, forever", [(kept, False), (kept, True), (slow_kept, False)])
def test_kept_batches_are_not_autotuned(make, forever):
    dataset = dataset_of("a pair")
    made = make(tuple(dataset), dataset.element_spec, forever=forever)
    assert autotunes(dataset) and not autotunes(made)
    assert made.element_spec == dataset.element_spec


def test_batches_kept_for_replicas_are_not_autotuned(monkeypatch):
    strategy, made = tf.distribute.MirroredStrategy(["CPU:0"]), []
    distribute = strategy.distribute_datasets_from_function
    monkeypatch.setattr(
        strategy,
        "distribute_datasets_from_function",
        lambda function: distribute(lambda context: made.append(function(context)) or made[-1]),
    )
    iterator = iter(strategy.experimental_distribute_dataset(dataset_of("a pair")))
    fed = feed(pull(iterator, 2), iterator, strategy)
    assert fed.element_spec == iterator.element_spec
    assert made and not any(map(autotunes, made))
