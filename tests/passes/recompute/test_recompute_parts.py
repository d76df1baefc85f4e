"""What is recomputed: what may be repeated, and where the cuts are."""

import itertools

import keras
import pytest
import tensorflow as tf
from steps import ROWS, TOKENS, assert_same, batches, compiled, normal, trained

from tfaccel.core.plan import Plan
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.passes.recompute._partition import cuts
from tfaccel.passes.recompute.recompute import Recompute

layers = keras.layers


class Impure(layers.Layer):
    """Does things with a generator, a variable or a tensor that no one else may repeat."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.dense = layers.Dense(5)
        self.count = tf.Variable(1.0, trainable=False)
        self.generator = tf.random.Generator.from_seed(3)
        self.outer = layers.Dense(5)

    def build(self, shape):
        self.dense.build(shape)
        self.outer.build(shape)
        self.table = self.add_weight(shape=(9, 5))
        self.drifting = self.add_weight(shape=(5,))

    def call(self, x):
        y = tf.tanh(self.dense(x))
        if self.kind == "raw_variable":
            self.count.assign_add(1.0)
            return y * self.count
        if self.kind == "generator":
            return y + self.generator.normal(tf.shape(y))
        if self.kind == "keras_seed":
            return y + keras.random.normal((5,))
        if self.kind == "python":
            return tf.reshape(tf.py_function(lambda z: z * 2.0, [y], "float32"), tf.shape(y)) + y
        if self.kind == "gather":
            return y + keras.ops.take(self.table, keras.ops.argmax(x, axis=-1), axis=0)
        if self.kind == "trained":
            self.drifting.assign(self.drifting * 0.9 + tf.reduce_mean(y, 0))
            return y * self.drifting
        if self.kind == "sparse_output":
            return tf.sparse.to_dense(tf.sparse.from_dense(y)) + y
        raise AssertionError(self.kind)


def impure(kind):
    x = inputs = keras.Input((5,))
    for index in range(4):
        x = layers.Dense(5, activation="tanh")(x)
        if index == 1:
            x = Impure(kind)(x)
    return compiled(keras.Model(inputs, layers.Dense(2)(x)), "adam")


@pytest.mark.parametrize(
    "kind",
    ["raw_variable", "generator", "keras_seed", "python", "gather", "trained", "sparse_output"],
)
@pytest.mark.slow
def test_what_can_t_be_repeated_is_not(kind, recomputed):
    assert_same(lambda: impure(kind), batches(*ROWS))
    assert recomputed, "the other layers can be recomputed"


def spectral():
    x = inputs = keras.Input((5,))
    for _ in range(3):
        x = layers.Dense(5, activation="relu")(x)
        x = layers.SpectralNormalization(layers.Dense(5))(x)
    return compiled(keras.Model(inputs, layers.Dense(2)(x)))


def goes_on():
    inputs = keras.Input(batch_shape=(4, 6, 3))
    x = layers.LSTM(4, stateful=True, return_sequences=True)(layers.Dense(4)(inputs))
    y, state = layers.GRU(4, return_state=True)(layers.Dense(4)(x))
    return compiled(keras.Model(inputs, layers.Dense(2)(y + state)))


def tied_embedding():
    tokens = keras.Input((7,), dtype="int32")
    embedding = layers.Embedding(11, 6)
    x = layers.Dense(6)(layers.Dense(6, activation="relu")(embedding(tokens)))
    x = keras.ops.matmul(layers.Dense(6)(x), keras.ops.transpose(embedding.embeddings.value))
    return compiled(keras.Model(tokens, layers.Dense(2)(layers.Flatten()(x))), "adam")


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (spectral, ROWS),
        (goes_on, (normal(16, 6, 3), normal(16, 2))),
        (tied_embedding, (TOKENS, normal(16, 2))),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
@pytest.mark.slow
def test_kerass_own_layers_that_can_t_be_repeated(make, data):
    assert_same(make, batches(*data))


def test_a_warning_where_nothing_is_recomputed():
    model = keras.Sequential([keras.Input((5,)), *(Impure("generator") for _ in range(4))])
    with pytest.warns(RuntimeWarning, match="recomputes nothing.*Keras does not track"):
        trained(lambda: compiled(model), Plan((Recompute(),)), batches(ROWS[0], ROWS[0]))


@pytest.mark.parametrize("count", [2, 9, 16, 100])
def test_equal_layers_are_cut_into_about_the_square_root(count):
    parts = cuts([1] * count, [1] * count, None)
    assert [first for first, _ in parts] == [0, *(end for _, end in parts[:-1])]
    assert parts[-1][1] == count
    assert abs(len(parts) - count**0.5) <= 1 + count**0.5 / 4


def test_cuts_are_where_little_passes():
    live = [8, 8, 1, 8, 8, 1, 8, 8, 1, 8]
    assert {end for _, end in cuts([8] * 10, live, None)[:-1]} <= {3, 6, 9}


def test_cuts_are_the_best_of_all(rng):
    """Against trying every way to cut."""
    for _ in range(30):
        count = int(rng.integers(2, 9))
        costs, live = (rng.integers(1, 9, count).tolist() for _ in range(2))

        def kept(ends, costs=costs, live=live):
            spans = itertools.pairwise([0, *ends, len(costs)])
            return sum(live[e - 1] for e in ends) + max(sum(costs[a:b]) for a, b in spans)

        ways = [w for k in range(1, count) for w in itertools.combinations(range(1, count), k)]
        best = min(kept(way) for way in ways)
        found = kept([end for _, end in cuts(costs, live, None)[:-1]])
        assert found <= 1.35 * best


@pytest.mark.parametrize("segments", [0, 1, -3, 2.0, True, "4"])
def test_segments_must_be_a_number_above_one(segments):
    with pytest.raises(ValueError, match="`segments` must be None or a whole number above 1"):
        Recompute(segments)


def test_refusals():
    unbuilt = compiled(keras.Sequential([layers.Dense(3), layers.Dense(2)]))
    assert Recompute().unsupported(Workload(unbuilt)).kind is Refusal.CASE
    shallow = compiled(keras.Sequential([keras.Input((3,)), layers.Dense(2)]))
    assert Recompute().unsupported(Workload(shallow)).kind is Refusal.NO_USE
