import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfaccel.profiling.flops import _rules, counting
from tfaccel.profiling.flops.counting import forward_flops, model_flops_per_step

layers = keras.layers
BATCH = 2


def specs(*shapes):
    made = [tf.TensorSpec((BATCH, *shape), tf.float32) for shape in shapes]
    return made[0] if len(made) == 1 else made


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


def chain(*frozen):
    """Three dense layers, 4 wide; those named are frozen."""
    model = keras.Sequential([keras.Input((4,))] + [layers.Dense(4) for _ in range(3)])
    for index in frozen:
        model.layers[index].trainable = False
    return model


@pytest.mark.parametrize(
    ("frozen", "products"),
    [
        ((), 3 + 3 + 3),
        ((0,), 1 + 2 + 3),  # nothing before the second needs a gradient
        ((0, 1), 1 + 1 + 2),
        ((1,), 3 + 2 + 3),  # the gradient goes through the second to the first
        ((2,), 3 + 3 + 2),
        ((0, 1, 2), 1 + 1 + 1),
    ],
)
def test_frozen_layers(frozen, products):
    found = forward_flops(chain(*frozen), specs((4,)))
    assert found.forward == 3 * 2 * BATCH * 16
    assert found.step == products * 2 * BATCH * 16


class Custom(keras.layers.Layer):
    """A layer that does what `body` does with its 4x4 kernel."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def build(self, shape):
        self.kernel = self.add_weight(shape=(4, 4))

    def call(self, inputs):
        return self.body(inputs, self.kernel.value)


def stopped(x, kernel):
    return tf.stop_gradient(x @ kernel) @ kernel


def assigned(x, kernel):
    """As spectral normalisation keeps a running estimate."""
    keeper.assign(tf.reduce_sum(x @ kernel))
    return x @ kernel


def looked_up(x, kernel):
    """A choice by the largest product, which has no gradient."""
    index = tf.argmax(x @ kernel, axis=1)
    return tf.one_hot(index, 4) * (x @ kernel)


def counted_loop(x, kernel):
    return tf.while_loop(lambda i, y: i < 5, lambda i, y: (i + 1, y @ kernel), (0, x))[1]


def bounded_loop(x, kernel):
    return tf.while_loop(
        lambda y: True, lambda y: (y @ kernel,), (x,), maximum_iterations=tf.constant(6)
    )[0]


def strided_loop(x, kernel):
    return tf.while_loop(lambda i, y: i <= 10, lambda i, y: (3 + i, y @ kernel), (1, x))[1]


def nested_loop(x, kernel):
    limit = tf.constant(3)

    def inner(y):
        return tf.while_loop(lambda j, z: j < limit, lambda j, z: (j + 1, z @ kernel), (0, y))[1]

    return tf.while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, inner(y)), (0, x))[1]


def endless_loop(x, kernel):
    return tf.while_loop(lambda y: tf.norm(y) > 1.0, lambda y: (y @ kernel,), (x,))[0]


def loop_without_products(x, kernel):
    return tf.while_loop(lambda y: tf.norm(y) > 1.0, lambda y: (y / 2,), (x @ kernel,))[0]


def branches(x, kernel):
    return tf.cond(tf.norm(x) > 1.0, lambda: x @ kernel @ kernel, lambda: x @ kernel)


def switch(x, kernel):
    index = tf.cast(tf.norm(x), tf.int32)
    return tf.switch_case(index, [lambda: x, lambda: x @ kernel, lambda: x @ kernel @ kernel])


def compiled(x, kernel):
    return tf.function(lambda y: y @ kernel, jit_compile=True)(x)


def called_twice(x, kernel):
    function = tf.function(lambda y: y @ kernel)
    return function(function(x))


def batched(x, kernel):
    return tf.matmul(tf.stack([x, x]), kernel, transpose_b=True)[0]


def unused(x, kernel):
    return x @ kernel + 0 * (lambda dead: x)(x @ kernel @ kernel)


def mapped(x, kernel):
    return tf.map_fn(lambda row: (row[None] @ kernel)[0], x)


def python_function(x, kernel):
    made = tf.py_function(lambda y: y, [x @ kernel], tf.float32)
    return tf.ensure_shape(made, x.shape)


keeper = tf.Variable(0.0)
ONE = 2 * BATCH * 16
# What a layer does, the forward operations, those of a step, and what can't be counted.
CUSTOM = [
    (stopped, 2 * ONE, (1 + 2) * ONE, 0),
    (assigned, 2 * ONE, (1 + 3) * ONE, 0),
    (looked_up, 2 * ONE, (1 + 3) * ONE, 0),
    (counted_loop, 5 * ONE, 15 * ONE, 0),
    (bounded_loop, 6 * ONE, 18 * ONE, 0),
    (strided_loop, 4 * ONE, 12 * ONE, 0),
    (nested_loop, 6 * ONE, 18 * ONE, 0),
    (endless_loop, 0, 0, 1),
    (loop_without_products, ONE, 3 * ONE, 0),
    (branches, 2 * ONE, 6 * ONE, 0),
    (switch, 2 * ONE, 6 * ONE, 0),
    (compiled, ONE, 3 * ONE, 0),
    (called_twice, 2 * ONE, 6 * ONE, 0),
    (batched, 2 * ONE, 6 * ONE, 0),
    (unused, ONE, 3 * ONE, 0),
    (mapped, ONE, 3 * ONE, 0),
    (python_function, ONE, 3 * ONE, 1),
]


@pytest.mark.parametrize(
    ("body", "forward", "step", "uncounted"), CUSTOM, ids=[row[0].__name__ for row in CUSTOM]
)
def test_control_flow(body, forward, step, uncounted):
    model = keras.Sequential([keras.Input((4,)), Custom(body)])
    found = forward_flops(model, specs((4,)))
    assert (found.forward, found.step, found.uncounted) == (forward, step, uncounted)
    assert (model_flops_per_step(model, (np.ones((BATCH, 4), "float32"),)) is None) == (
        uncounted > 0
    )


def test_the_losses_of_layers_count():
    class Penalised(keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(4, 4))

        def call(self, inputs):
            self.add_loss(tf.reduce_sum(inputs @ self.kernel.value))
            return inputs

    model = keras.Sequential([keras.Input((4,)), Penalised()])
    assert forward_flops(model, specs((4,))).forward == ONE


@pytest.mark.parametrize(
    ("equation", "left", "right", "flops"),
    [
        ("ij,jk->ik", (2, 3), (3, 5), 2 * 2 * 3 * 5),
        ("bij,bjk->bik", (7, 2, 3), (7, 3, 5), 2 * 7 * 2 * 3 * 5),
        ("aecd,abcd->acbe", (2, 5, 3, 4), (2, 6, 3, 4), 2 * 2 * 5 * 6 * 3 * 4),
        ("...ij,...jk->...ik", (7, 1, 2, 3), (6, 3, 5), 2 * 7 * 6 * 2 * 3 * 5),
        ("ij,ij->", (2, 3), (2, 3), 2 * 2 * 3),
        ("ij,jk->i", (2, 3), (3, 5), 2 * 2 * 3),  # k is summed beforehand
        ("ij,ij->ij", (2, 3), (2, 3), None),  # elementwise
        ("i,j->ij", (2,), (3,), None),  # nothing is added up
    ],
)
def test_einsum(equation, left, right, flops):
    assert _rules.einsum_flops(equation, left, right) == flops


@pytest.mark.parametrize(
    ("mode", "direction", "layer_count", "multiplications"),
    [
        ("lstm", "unidirectional", 1, 4 * 5 * (3 + 5)),
        ("gru", "bidirectional", 1, 2 * 3 * 5 * (3 + 5)),
        ("rnn_tanh", "bidirectional", 2, 2 * 5 * (3 + 5) + 2 * 5 * (10 + 5)),
    ],
)
def test_cudnn_rnn(mode, direction, layer_count, multiplications):
    """The op is only traced, so no GPU is needed."""
    states = layer_count * (2 if direction == "bidirectional" else 1)

    @tf.function
    def run():
        zeros = tf.zeros((states, BATCH, 5))
        return tf.raw_ops.CudnnRNNV3(
            input=tf.zeros((7, BATCH, 3)),
            input_h=zeros,
            input_c=zeros,
            params=tf.zeros((1000,)),
            sequence_lengths=tf.fill((BATCH,), 7),
            rnn_mode=mode,
            direction=direction,
        ).output

    graph = run.get_concrete_function().graph
    (op,) = (op for op in graph.get_operations() if op.type == "CudnnRNNV3")
    found = _rules.product(op)
    assert found.flops == 2 * 7 * BATCH * multiplications


def test_gradients_inside_the_forward_pass_count():
    """As in networks that are penalised for their gradient."""

    def body(x, kernel):
        image = tf.reshape(x, (BATCH, 2, 2, 1))
        filters = tf.reshape(kernel[:2, :2], (2, 2, 1, 1))
        with tf.GradientTape() as tape:
            tape.watch(filters)
            out = tf.nn.conv2d(image, filters, 1, "SAME")
        return x + tf.reduce_sum(tape.gradient(out, filters)) + tf.reduce_sum(out)

    model = keras.Sequential([keras.Input((4,)), Custom(body)])
    convolution = 2 * BATCH * 4 * 4
    assert forward_flops(model, specs((4,))).forward == 2 * convolution


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
