"""Sums in 16 bits, biases above all: float64's, to one rounding."""

import contextlib
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from crossed import with_slow
from in_16_bits import ZEN5, compiled, workload_of

import tfaccel
from tfaccel.autotune.comparison.step_recorder import StepRecorder
from tfaccel.compat.onednn import takes_bfloat16
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.passes import MixedPrecision
from tfaccel.steps.snapshot import Snapshot
from tfaccel.system.device import Device

layers = keras.layers


def loss_of(y, upstream):
    return tf.reduce_sum(tf.cast(y, upstream.dtype) * upstream)


def under_the_pass(layer, function, *args, head=None):
    """A function of tensors, traced while the pass is active on a model of this layer."""
    model = keras.Model()
    model.parts = [layer, head or layers.Dense(1)]  # the last one stays in float32
    with MixedPrecision("bfloat16").applied(StepContext(Workload(model, device=ZEN5))):
        return tf.function(function, autograph=False)(*args)


def off(found, exact):
    """The error of all tensors together, as a share of their norm."""
    found = np.concatenate([np.ravel(tf.cast(x, tf.float64)) for x in found])
    exact = np.concatenate([np.ravel(tf.cast(x, tf.float64)) for x in exact])
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


class BroadcastBias(keras.layers.Layer):
    """A layer of the user's own, whose bias is added by `+`."""

    def build(self, shape):
        self.bias = self.add_weight(shape=shape[-1:], name="bias")

    def call(self, inputs):
        return inputs + self.bias


class GivenBias(BroadcastBias):
    """One that calls TensorFlow's function by arguments' names."""

    def call(self, inputs):
        bias = keras.ops.convert_to_tensor(self.bias)
        return tf.nn.bias_add(bias=tf.cast(bias, inputs.dtype), value=inputs)


class FirstBias(keras.layers.Layer):
    """A bias as Keras adds it to convolutions with the channels first."""

    data_format = "channels_first"

    def build(self, shape):
        self.bias = self.add_weight(shape=shape[1:2], name="bias")

    def call(self, inputs):
        return keras.ops.add(inputs, keras.ops.reshape(self.bias, (1, -1, 1, 1)))


BIASED = {
    "dense": (lambda: layers.Dense(3), (64, 64, 2)),
    "einsum_dense": (
        lambda: layers.EinsumDense("abc,cd->abd", (64, 3), bias_axes="d"),
        (64, 64, 2),
    ),
    "einsum_heads": (
        lambda: layers.EinsumDense("abc,cde->abde", (64, 2, 3), bias_axes="de"),
        (64, 64, 2),
    ),
    "conv1d": (lambda: layers.Conv1D(3, 3, padding="same"), (16, 256, 2)),
    "conv2d": (lambda: layers.Conv2D(3, 3, padding="same"), (16, 16, 16, 2)),
    "channels_first": (FirstBias, (512, 3, 4, 4)),
    "conv3d": (lambda: layers.Conv3D(3, 2, padding="same"), (8, 8, 8, 8, 2)),
    "conv1d_transpose": (lambda: layers.Conv1DTranspose(3, 2, strides=2), (16, 128, 2)),
    "conv2d_transpose": (lambda: layers.Conv2DTranspose(3, 2, strides=2), (16, 8, 8, 2)),
    "conv3d_transpose": (lambda: layers.Conv3DTranspose(3, 2, strides=2), (8, 4, 4, 4, 2)),
    "depthwise1d": (lambda: layers.DepthwiseConv1D(3, padding="same"), (16, 256, 2)),
    "depthwise2d": (lambda: layers.DepthwiseConv2D(3, padding="same"), (16, 16, 16, 2)),
    "separable1d": (lambda: layers.SeparableConv1D(3, 3, padding="same"), (16, 256, 2)),
    "separable2d": (lambda: layers.SeparableConv2D(3, 3, padding="same"), (16, 16, 16, 2)),
    "own": (BroadcastBias, (64, 64, 3)),
    "own_named": (GivenBias, (64, 64, 3)),
}


@pytest.mark.parametrize("kind", BIASED)
def test_a_bias_has_the_sum_of_what_comes_back(rng, kind):
    """TensorFlow adds BiasAdd's gradient up in bfloat16: half of it is missing here."""
    make, shape = BIASED[kind]
    layer = make()
    y = layer(tf.zeros(shape))
    upstream = tf.constant(0.5 + rng.normal(size=y.shape), tf.bfloat16)

    def gradient(x):
        with tf.GradientTape() as tape:
            loss = loss_of(layer(x), upstream)
        return tape.gradient(loss, layer.bias.value)

    found = under_the_pass(layer, gradient, tf.constant(rng.normal(size=shape), tf.bfloat16))
    channel = 1 if getattr(layer, "data_format", None) == "channels_first" else None
    kept = [channel] if channel else range(y.shape.rank - layer.bias.shape.rank, y.shape.rank)
    axes = tuple(axis for axis in range(y.shape.rank) if axis not in kept)
    assert off([found], [np.asarray(upstream, "float64").sum(axes)]) < 2.0**-8


TWINS = {
    "simple_rnn": lambda dtype: layers.SimpleRNN(3, dtype=dtype),
    "lstm": lambda dtype: layers.LSTM(3, dtype=dtype),
    "gru": lambda dtype: layers.GRU(3, dtype=dtype),
    "bidirectional": lambda dtype: layers.Bidirectional(layers.GRU(3, dtype=dtype), dtype=dtype),
    "conv_lstm": lambda dtype: keras.Sequential(
        [
            layers.Reshape((-1, 4, 4), dtype=dtype),
            layers.ConvLSTM1D(2, 2, dtype=dtype),
        ]
    ),
    "dense_tanh": lambda dtype: layers.Dense(3, activation="tanh", dtype=dtype),
}


def twins(make, shape, rng):
    """A layer, and the same in float64 with weights rounded to bfloat16."""
    layer, exact = make("float32"), make("float64")
    layer.build(shape)
    exact.build(shape)
    for one, other in zip(layer.trainable_weights, exact.trainable_weights, strict=True):
        value = tf.constant(0.5 * rng.normal(size=one.shape), tf.bfloat16)
        one.assign(tf.cast(value, tf.float32))
        other.assign(tf.cast(value, tf.float64))
    return layer, exact


def biases(layer):
    return [w.value for w in layer.trainable_weights if w.name == "bias"]


# An LSTM adds its bias as a GRU does, of which Bidirectional has two here.
@pytest.mark.parametrize("kind", with_slow(TWINS, ["lstm", "bidirectional"]))
def test_biases_inside_layers_have_float64_s_gradients(rng, kind):
    shape = (2048, 4, 16)
    layer, exact = twins(TWINS[kind], shape, rng)
    x = tf.constant(rng.normal(size=shape), tf.bfloat16)
    upstream = tf.constant(1.0 + rng.normal(size=exact(x).shape), tf.bfloat16)

    def gradients(layer, dtype):
        with tf.GradientTape() as tape:
            loss = loss_of(layer(tf.cast(x, dtype)), tf.cast(upstream, dtype))
        return tape.gradient(loss, biases(layer))

    found = under_the_pass(layer, lambda: gradients(layer, "float32"))
    assert off(found, gradients(exact, "float64")) < 0.03


@pytest.mark.parametrize("kind", ["dense_tanh", pytest.param("gru", marks=pytest.mark.slow)])
def test_second_derivatives_through_a_bias(rng, kind):
    shape = (512, 4, 3)
    layer, exact = twins(TWINS[kind], shape, rng)
    x = tf.constant(rng.normal(size=shape), tf.bfloat16)

    def gradients(layer, dtype):
        inputs = tf.cast(x, dtype)
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                y = tf.cast(layer(inputs), "float64")
                loss = tf.reduce_mean(tf.square(1.0 + y))
            first = inner.gradient(loss, biases(layer))
            penalty = tf.add_n([tf.reduce_sum(tf.square(tf.cast(g, "float64"))) for g in first])
        return outer.gradient(penalty, [w.value for w in layer.trainable_weights])

    found = under_the_pass(layer, lambda: gradients(layer, "float32"))
    assert off(found, gradients(exact, "float64")) < 0.05


SUMS = {
    "cumsum": lambda x: keras.ops.cumsum(x, axis=0),
    "segment_sum": lambda x: keras.ops.segment_sum(x, tf.zeros(len(x), "int32"), 1),
    "sorted_segments": lambda x: keras.ops.segment_sum(x, tf.zeros(len(x), "int32"), sorted=True),
    "average_pool": lambda x: keras.ops.average_pool(tf.reshape(x, (1, 64, 64, 2)), 64),
    "average_pool1d": lambda x: keras.ops.average_pool(tf.reshape(x, (1, 4096, 2)), 4096),
    "mean": lambda x: keras.ops.mean(x, axis=0),
    "softmax": lambda x: keras.ops.softmax(tf.transpose(x)),
}


class Summing(keras.layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


@pytest.mark.parametrize("kind", SUMS)
def test_sums_of_16_bits_lose_one_rounding(rng, kind):
    x = tf.constant(0.5 + rng.normal(size=(4096, 2)), tf.bfloat16)
    # TensorFlow has no pooling in float64.
    exact = SUMS[kind](tf.cast(x, tf.float32))
    layer = Summing(SUMS[kind])
    found = under_the_pass(layer, lambda: layer(x))
    assert found.dtype == tf.bfloat16
    assert off([found], [exact]) < 2.0**-8


@pytest.mark.parametrize("fails", [False, True])
def test_tensorflow_s_functions_are_back_and_never_others(rng, fails):
    """A training in another thread, and the next one in this thread, are what they were."""
    plain = tf.nn.bias_add
    upstream = tf.constant(0.5 + rng.normal(size=(4096, 2)), tf.bfloat16)
    expected = tf.raw_ops.BiasAddGrad(out_backprop=upstream).numpy()
    assert off([expected], [np.asarray(upstream, "float64").sum(0)]) > 0.1

    def gradient():
        bias = tf.zeros(2, tf.bfloat16)
        with tf.GradientTape() as tape:
            tape.watch(bias)
            y = tf.nn.bias_add(upstream, bias)
        return tape.gradient(y, bias, upstream)

    found = []

    def elsewhere():
        found.extend([gradient(), tf.function(gradient, autograph=False)()])

    model = compiled(keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.Dense(1)]))
    active = MixedPrecision("bfloat16").applied(StepContext(Workload(model, device=ZEN5)))
    with contextlib.suppress(ZeroDivisionError), active:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        inside = gradient()
        if fails:
            raise ZeroDivisionError
    assert tf.nn.bias_add is plain
    for other in (*found, gradient()):
        np.testing.assert_array_equal(other, expected)
    assert off([inside], [np.asarray(upstream, "float64").sum(0)]) < 2.0**-8


def test_float16_and_gpus_keep_tensorflow_s_sums():
    plain = tf.nn.bias_add
    model = compiled(keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.Dense(1)]))
    gpu = Device("GPU", "A100", compute_capability=(8, 0))
    for item, device in ((MixedPrecision("float16"), ZEN5), (MixedPrecision("bfloat16"), gpu)):
        with item.applied(StepContext(Workload(model, device=device))):
            assert tf.nn.bias_add is plain


def small_net():
    """Layers that every other pass serves, whose biases have thousands of rows."""
    x = inputs = keras.Input((1024, 4))
    x = layers.Dense(6, activation="gelu")(x)
    x = layers.LayerNormalization()(x)
    x = layers.MultiHeadAttention(2, 3)(x[:, :64], x[:, :64])
    x = layers.Conv1D(6, 3, padding="same", activation="relu")(x)
    x = layers.LSTM(4, return_sequences=True)(x)
    return keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling1D()(x)))


@pytest.fixture(scope="module")
def seen():
    """A probe of the small net, and what it saw of the untouched step."""
    rng = np.random.default_rng(4)
    keras.utils.set_random_seed(3)
    x = rng.normal(size=(32, 1024, 4)).astype("float32")
    workload = workload_of(compiled(small_net()), x, 5.0 + x[:, :1, 0])
    probe = StepRecorder(workload, Snapshot.of(workload))
    return probe, probe.observe(tfaccel.Plan())


@pytest.mark.parametrize(
    "names",
    [
        # The first pass of a plan is the outermost.
        ["mixed_precision", "fused_activation", "fused_norm", "fused_attention", "fused_rnn"],
        pytest.param(
            ["fused_rnn", "layout", "fused_attention", "fused_norm", "mixed_precision"],
            marks=pytest.mark.slow,
        ),
        ["kernels", "mixed_precision", "recompute"],
        # XLA takes long to compile the recurrent layer.
        pytest.param(["mixed_precision", "xla"], marks=pytest.mark.slow),
    ],
    ids="+".join,
)
def test_gradients_of_biases_beside_other_passes(seen, names):
    probe, reference = seen
    reduced = MixedPrecision("bfloat16")
    plan = tfaccel.core.plan.as_plan([reduced if n == reduced.name else n for n in names])
    found = probe.observe(plan, reference)
    assert tfaccel.measure.numerics.compare(reference, found).gradient < 0.03


ATTENTION = {
    "multi_head": lambda dtype: layers.MultiHeadAttention(2, 4, dtype=dtype),
    # Layers that drop probabilities have a softmax layer of their own.
    "multi_head_softmax": lambda dtype: layers.MultiHeadAttention(2, 4, dropout=1e-9, dtype=dtype),
    "grouped": lambda dtype: layers.GroupQueryAttention(4, 4, 2, dropout=1e-9, dtype=dtype),
    "attention": lambda dtype: layers.Attention(use_scale=True, dtype=dtype),
    "additive": lambda dtype: layers.AdditiveAttention(dtype=dtype),
}


@pytest.mark.parametrize("kind", ATTENTION)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_float64_s_to_rounding(rng, kind, masked):
    shape = (64, 16, 8)
    x = tf.constant(rng.normal(size=shape), tf.bfloat16)
    seen = tf.constant(rng.random(shape[:2]) < 0.7) | (tf.range(16) == 0)
    layer, exact = ATTENTION[kind]("float32"), ATTENTION[kind]("float64")
    single = kind in ("attention", "additive")

    def run(layer, dtype):
        inputs = tf.cast(x, dtype)
        masks = {"mask": [seen, seen]} if single else {"query_mask": seen, "value_mask": seen}
        arguments = ([inputs, inputs],) if single else (inputs, inputs)
        # Such dropout drops nothing, and draws.
        return layer(*arguments, **(masks if masked else {}), training=not single)

    run(layer, "float32"), run(exact, "float64")
    for one, other in zip(layer.trainable_weights, exact.trainable_weights, strict=True):
        value = tf.constant(0.5 * rng.normal(size=one.shape), tf.bfloat16)
        one.assign(tf.cast(value, tf.float32))
        other.assign(tf.cast(value, tf.float64))

    def results(layer, dtype):
        with tf.GradientTape() as tape:
            y = run(layer, dtype)
            loss = tf.reduce_sum(tf.square(1.0 + tf.cast(y, dtype)))
        return y, tape.gradient(loss, [w.value for w in layer.trainable_weights])

    y, gradients = under_the_pass(layer, lambda: results(layer, "float32"))
    wanted, wanted_gradients = results(exact, "float64")
    assert y.dtype == tf.bfloat16
    # A few roundings of 2^-9, each twice where products are Eigen's.
    assert off([y], [wanted]) < 0.02
    assert off(gradients, wanted_gradients) < 0.02


def test_scores_are_never_wider_than_16_bits(rng):
    """Of an attention layer with a softmax layer inside, where oneDNN has the kernel for it."""
    layer = layers.MultiHeadAttention(2, 4, dropout=0.1)
    layer.build((4, 16, 8), (4, 16, 8))
    x = tf.constant(rng.normal(size=(4, 16, 8)), tf.bfloat16)
    softmax = []

    def run():
        y = layer(x, x, training=True)
        operations = tf.compat.v1.get_default_graph().get_operations()
        softmax.extend(op.inputs[0].dtype for op in operations if op.type == "Softmax")
        return y

    under_the_pass(layer, run)
    assert softmax == [tf.bfloat16 if takes_bfloat16() else tf.float32]
