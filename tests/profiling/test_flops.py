import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from counted import BATCH, specs

from tfaccel.profiling.flops import counting
from tfaccel.profiling.flops.counting import forward_flops, model_flops_per_step

layers = keras.layers


def built(layer, *shapes):
    """A functional model of one layer."""
    inputs = [keras.Input(shape) for shape in shapes]
    return keras.Model(inputs, layer(*inputs))


def attention(heads, size, tokens, width):
    projections = 3 * tokens * width * heads * size
    weighted = 2 * heads * tokens * tokens * size
    return projections + weighted + tokens * heads * size * width


# A layer, its input's shape, and its multiplications for one sample, by hand.
LAYERS = {
    "dense": (layers.Dense(5), (3,), 3 * 5),
    "dense_of_sequence": (layers.Dense(5), (4, 3), 4 * 3 * 5),
    "einsum_dense": (layers.EinsumDense("abc,cd->abd", (None, 5)), (4, 3), 4 * 3 * 5),
    "conv2d_valid": (layers.Conv2D(6, 3), (8, 8, 4), 6 * 6 * 6 * 9 * 4),
    "conv2d_same": (layers.Conv2D(6, 3, padding="same"), (8, 8, 4), 8 * 8 * 6 * 9 * 4),
    "conv2d_strides": (
        layers.Conv2D(6, 3, strides=2, padding="same"),
        (9, 9, 4),
        5 * 5 * 6 * 9 * 4,
    ),
    "conv2d_window": (layers.Conv2D(6, (1, 5)), (8, 8, 4), 8 * 4 * 6 * 5 * 4),
    "conv2d_dilated": (layers.Conv2D(6, 3, dilation_rate=2), (9, 9, 4), 5 * 5 * 6 * 9 * 4),
    "conv2d_dilated_same": (
        layers.Conv2D(6, 3, dilation_rate=2, padding="same"),
        (9, 9, 4),
        9 * 9 * 6 * 9 * 4,
    ),
    "conv2d_groups": (layers.Conv2D(6, 3, groups=2), (8, 8, 4), 6 * 6 * 6 * 9 * 2),
    "conv2d_channels_first": (
        layers.Conv2D(6, 3, data_format="channels_first"),
        (4, 8, 8),
        6 * 6 * 6 * 9 * 4,
    ),
    "conv1d": (layers.Conv1D(6, 3), (10, 4), 8 * 6 * 3 * 4),
    "conv1d_causal_dilated": (
        layers.Conv1D(6, 3, padding="causal", dilation_rate=2),
        (9, 4),
        9 * 6 * 3 * 4,
    ),
    "conv3d": (layers.Conv3D(6, 3), (5, 5, 5, 2), 27 * 6 * 27 * 2),
    "depthwise": (layers.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 4), 36 * 4 * 2 * 9),
    "depthwise_dilated": (layers.DepthwiseConv2D(3, dilation_rate=2), (9, 9, 4), 25 * 4 * 9),
    "depthwise_1d": (layers.DepthwiseConv1D(3), (10, 4), 8 * 4 * 3),
    "separable": (layers.SeparableConv2D(6, 3), (8, 8, 4), 36 * 4 * 9 + 36 * 4 * 6),
    "transposed": (
        layers.Conv2DTranspose(6, 3, strides=2, padding="same"),
        (5, 5, 4),
        25 * 4 * 9 * 6,
    ),
    "transposed_1d": (layers.Conv1DTranspose(6, 3), (5, 4), 5 * 4 * 3 * 6),
    "transposed_3d": (layers.Conv3DTranspose(6, 3), (3, 3, 3, 2), 27 * 2 * 27 * 6),
    "simple_rnn": (layers.SimpleRNN(5), (7, 3), 7 * 5 * (3 + 5)),
    "lstm": (layers.LSTM(5), (7, 3), 7 * 4 * 5 * (3 + 5)),
    "lstm_sequences": (layers.LSTM(5, return_sequences=True), (7, 3), 7 * 4 * 5 * (3 + 5)),
    "lstm_unrolled": (layers.LSTM(5, unroll=True), (7, 3), 7 * 4 * 5 * (3 + 5)),
    "lstm_dropout": (layers.LSTM(5, dropout=0.1), (7, 3), 7 * 4 * 5 * (3 + 5)),
    "gru": (layers.GRU(5), (7, 3), 7 * 3 * 5 * (3 + 5)),
    "gru_reset_before": (layers.GRU(5, reset_after=False), (7, 3), 7 * 3 * 5 * (3 + 5)),
    "bidirectional": (layers.Bidirectional(layers.GRU(5)), (7, 3), 2 * 7 * 3 * 5 * (3 + 5)),
    "stacked_cells": (
        layers.RNN([layers.LSTMCell(5), layers.LSTMCell(2)]),
        (7, 3),
        7 * 4 * (5 * (3 + 5) + 2 * (5 + 2)),
    ),
    "time_distributed": (layers.TimeDistributed(layers.Dense(5)), (7, 3), 7 * 3 * 5),
    "batch_norm": (layers.BatchNormalization(), (7, 3), 0),
    "pooling": (layers.AveragePooling2D(2), (8, 8, 4), 0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_by_hand(name):
    layer, shape, multiplications = LAYERS[name]
    layer = type(layer).from_config(layer.get_config())  # the table's own is never built
    found = forward_flops(built(layer, shape), specs(shape))
    assert found.forward == 2 * BATCH * multiplications
    assert found.uncounted == 0
    assert (found.products > 0) == (multiplications > 0)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_attention(dtype):
    keras.config.set_dtype_policy(dtype)
    layer = layers.MultiHeadAttention(num_heads=2, key_dim=3)
    inputs = keras.Input((5, 4))
    found = forward_flops(keras.Model(inputs, layer(inputs, inputs)), specs((5, 4)))
    assert found.forward == 2 * BATCH * attention(2, 3, 5, 4)
    assert found.step == 3 * found.forward


def test_an_embedding_is_a_look_up():
    model = keras.Sequential([keras.Input((6,), dtype="int32"), layers.Embedding(9, 4)])
    found = forward_flops(model, np.zeros((BATCH, 6), "int32"))
    assert (found.forward, found.uncounted) == (0, 0)
    assert model_flops_per_step(model, (np.zeros((BATCH, 6), "int32"),)) is None


def test_masks_go_through():
    model = keras.Sequential(
        [keras.Input((7,)), layers.Embedding(9, 3, mask_zero=True), layers.LSTM(5)]
    )
    assert forward_flops(model, specs((7,))).forward == 2 * BATCH * 7 * 4 * 5 * 8


def two_inputs(kind):
    a, b = keras.Input((3,), name="a"), keras.Input((4,), name="b")
    return keras.Model(kind(a, b), layers.Concatenate()([layers.Dense(5)(a), layers.Dense(6)(b)]))


@pytest.mark.parametrize(
    "kind", [lambda a, b: [a, b], lambda a, b: {"a": a, "b": b}], ids=["list", "dict"]
)
def test_several_inputs(kind):
    batch = kind(np.ones((BATCH, 3), "float32"), np.ones((BATCH, 4), "float32"))
    labels = np.ones((BATCH, 11), "float32")
    expected = 2 * BATCH * (3 * 5 + 4 * 6)
    assert forward_flops(two_inputs(kind), batch).forward == expected
    assert model_flops_per_step(two_inputs(kind), (batch, labels)) == 3 * expected


def test_nested_models():
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dense(4)])
    model = keras.Sequential([keras.Input((3,)), inner, layers.Dense(5)])
    assert forward_flops(model, specs((3,))).forward == 2 * BATCH * (3 * 4 + 4 * 4 + 4 * 5)


class Subclassed(keras.Model):
    """Keeps what it computes, adds a loss and updates a metric, as users' layers do."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(4)
        self.noise = layers.Dropout(0.5)
        self.norm = layers.BatchNormalization()
        self.head = layers.Dense(2)
        self.seen = keras.metrics.Mean(name="seen")
        self.last = None
        self.history_of_calls = []

    def call(self, inputs, training=False):
        hidden = self.norm(self.noise(self.hidden(inputs), training=training), training=training)
        self.last = hidden
        self.history_of_calls.append(hidden)
        self.add_loss(tf.reduce_mean(hidden))
        self.seen.update_state(hidden)
        return self.head(hidden)


@pytest.fixture
def subclassed(rng):
    model = Subclassed()
    model.compile("sgd", "mse", metrics=["mae"], jit_compile=False)
    x, y = rng.normal(size=(8, 3)).astype("float32"), np.ones((8, 2), "float32")
    model.fit(x, y, batch_size=4, verbose=0)
    return model, (x[:BATCH], y[:BATCH])


def test_a_subclassed_model(subclassed):
    model, batch = subclassed
    assert model_flops_per_step(model, batch) == 3 * 2 * BATCH * (3 * 4 + 4 * 2)


def marks(model):
    objects = [model, *model.layers, *model.metrics]
    attributes = [{name: id(value) for name, value in vars(o).items()} for o in objects]
    kept = [id(tensor) for tensor in model.history_of_calls]
    losses = [id(tensor) for tensor in model._losses]
    return attributes, kept, losses


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    variables += [v for metric in model.metrics for v in metric.variables]
    return [v.numpy().tobytes() for v in variables]


def test_counting_leaves_no_mark(subclassed):
    model, batch = subclassed
    before, values = marks(model), state(model)
    draws = random.getstate(), np.random.get_state()[1].tolist()
    draws += (tf.random.get_global_generator().state.numpy().tolist(),)
    assert model_flops_per_step(model, batch)
    assert marks(model) == before
    assert state(model) == values
    after = random.getstate(), np.random.get_state()[1].tolist()
    assert draws == (*after, tf.random.get_global_generator().state.numpy().tolist())


def test_eager_random_numbers_are_not_used_up(subclassed):
    model, batch = subclassed
    tf.random.set_seed(5)
    expected = [tf.random.normal(()).numpy() for _ in range(2)]
    tf.random.set_seed(5)
    found = [tf.random.normal(()).numpy()]
    model_flops_per_step(model, batch)
    assert [*found, tf.random.normal(()).numpy()] == expected


def test_training_goes_on_as_if_nothing_had_been_counted(rng):
    x, y = rng.normal(size=(8, 3)).astype("float32"), np.ones((8, 2), "float32")
    results = []
    for is_counting in (False, True):
        keras.utils.set_random_seed(3)
        model = Subclassed()
        model.compile("sgd", "mse", jit_compile=False)
        model.train_on_batch(x, y)
        if is_counting:
            assert model_flops_per_step(model, (x, y))
        model.train_on_batch(x, y)
        results.append(state(model))
    assert results[0] == results[1]


def test_a_model_that_is_not_built():
    assert forward_flops(keras.Sequential([layers.Dense(3)]), specs((4,))) is None


class BuildsLate(keras.Model):
    def call(self, inputs):
        return layers.Dense(3)(inputs)


def test_a_call_that_makes_variables():
    model = BuildsLate()
    model.built = True
    assert forward_flops(model, specs((4,))) is None
    assert model.variables == []


def test_a_model_that_has_no_call():
    model = Subclassed()
    model.built = True
    model.call = None
    assert forward_flops(model, specs((3,))) is None


@pytest.mark.parametrize(
    "inputs",
    [tf.ragged.constant([[1.0], [2.0, 3.0]]), tf.sparse.from_dense([[1.0, 0.0]]), "text"],
    ids=["ragged", "sparse", "text"],
)
def test_inputs_without_a_shape(inputs):
    assert forward_flops(built(layers.Dense(2), (2,)), inputs) is None


def test_an_unknown_batch_size_is_uncounted():
    model = built(layers.Dense(5), (3,))
    found = forward_flops(model, tf.TensorSpec((None, 3), tf.float32))
    assert (found.forward, found.uncounted) == (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "multiplications"),
    [
        # He et al. (2015), table 1, and Sandler et al. (2018), table 4.
        ("ResNet50", 224, 3.8e9),
        ("MobileNetV2", 224, 300e6),
    ],
)
def test_published_figures(name, size, multiplications):
    model = getattr(keras.applications, name)(weights=None)
    found = counting.forward_flops(model, tf.TensorSpec((1, size, size, 3), tf.float32))
    assert found.forward / 2 == pytest.approx(multiplications, rel=0.03)
    assert found.uncounted == 0
