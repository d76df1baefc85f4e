"""Layout against the same layers written channels_last, and against Keras as written.

TensorFlow has no channels_first convolutions on some CPUs, so what is written
channels_first is computed in one of two plain ways: by the channels-last twin with
the same weights, or (`as_written`) by Keras's own code with nothing but its
convolution replaced by transposes around `tf.nn.convolution`.
"""

import collections
import contextlib
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from crossed import with_slow

import tfaccel
from tfaccel.compat.patching import instance_attribute
from tfaccel.compat.tensorflow_private import onednn_is_on
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.passes import FusedNorm, FusedOptimizer, Layout, MixedPrecision
from tfaccel.system.device import Device

layers = keras.layers
FIRST = {"data_format": "channels_first"}
CPU = Device("CPU", "test")


def to_first(array):
    return np.moveaxis(array, -1, 1) if array.ndim > 2 else array


def to_last(array):
    return np.moveaxis(array, 1, -1) if array.ndim > 2 else array


def conv(filters=4, size=3, **options):
    return layers.Conv2D(filters, size, **({"padding": "same"} | FIRST | options))


def shake(layer, rng):
    """Weights that are not their defaults."""
    for weight in layer.weights:
        if weight.dtype.startswith("float"):
            low = 0.5 if "variance" in weight.path else -1.0
            weight.assign(rng.uniform(low, 1.5, weight.shape))


@contextlib.contextmanager
def as_written(model):
    """Keras's own code, with convolutions that every CPU has."""

    def plain(layer):
        def convolution_op(inputs, kernel):
            y = tf.nn.convolution(
                tf.transpose(inputs, [0, 2, 3, 1]),
                kernel,
                strides=layer.strides,
                padding=layer.padding.upper(),
                dilations=layer.dilation_rate,
            )
            return tf.transpose(y, [0, 3, 1, 2])

        return convolution_op

    with contextlib.ExitStack() as stack:
        for layer in Workload(model).layers:
            if isinstance(layer, layers.Conv2D):
                stack.enter_context(instance_attribute(layer, "convolution_op", plain(layer)))
        yield


def laid_out(model, *others, device=CPU):
    return Plan((*others, Layout())).applied(StepContext(Workload(model, device=device)))


def flat(structure):
    return [None if t is None else t.numpy() for t in tf.nest.flatten(structure)]


class Run:
    """A traced function of a model: outputs, losses, and gradients of x and the weights."""

    def __init__(
        self,
        model,
        *shapes,
        context=None,
        dtype="float32",
        training=False,
        jit_compile=False,
        weigh=None,
    ):
        self.weights = [v.value for v in model.trainable_variables]
        specs = [tf.TensorSpec([None, *shape[1:]], dtype) for shape in shapes]

        @tf.function(input_signature=specs, autograph=False, jit_compile=jit_compile)
        def run(*inputs):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = model(inputs[0] if len(inputs) == 1 else list(inputs), training=training)
                results = [_floats(y) for y in tf.nest.flatten(outputs)]
                total = tf.add_n([tf.reduce_sum((weigh or apart)(y)) for y in results])
                total += sum(tf.cast(loss, total.dtype) for loss in model.losses)
            gradients = tape.gradient(total, [*inputs, *self.weights])
            return outputs, total, gradients

        with context or contextlib.nullcontext():
            self.function = run.get_concrete_function()

    def __call__(self, *inputs):
        return flat(self.function(*[tf.constant(x) for x in inputs]))


def _floats(y):
    return tf.cast(y, tf.float32) if y.dtype == tf.bfloat16 else y


def apart(y):
    """Weighs every element differently, so that none can stand in for another."""
    return tf.square(y + 1) * tf.reshape(tf.sin(tf.range(tf.size(y), dtype=y.dtype)), tf.shape(y))


def alike(y):
    """Weighs elements by their values, wherever they are."""
    return tf.sin(3 * y) * tf.square(y)


def count(function, *inputs):
    """How many of each op are in the graph that TensorFlow made of a traced function."""
    from tensorflow.python.eager import context

    with context.collect_graphs(optimized=True) as graphs:
        function(*[tf.constant(x) for x in inputs])
    nodes = [n for g in graphs for part in (g, *g.library.function) for n in _nodes(part)]
    return collections.Counter(node.op for node in nodes)


def _nodes(part):
    return part.node if hasattr(part, "node") else part.node_def


def assert_close(actual, expected, tolerance=1e-5):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert (a is None) == (e is None)
        if e is not None:
            scale = max(1.0, float(np.max(np.abs(e), initial=0.0)))
            np.testing.assert_allclose(a / scale, e / scale, rtol=0, atol=tolerance)


def images(rng, *shape, dtype="float32"):
    return rng.normal(size=shape).astype(dtype)


SPATIAL = {
    "Conv1D": (lambda **o: layers.Conv1D(4, 3, activation="relu", **o), (2, 3, 9)),
    "Conv1D causal": (lambda **o: layers.Conv1D(4, 3, padding="causal", **o), (2, 3, 9)),
    "Conv1D causal dilated": (
        lambda **o: layers.Conv1D(4, 2, padding="causal", dilation_rate=3, **o),
        (1, 3, 9),
    ),
    "Conv2D": (lambda **o: layers.Conv2D(4, 3, **o), (2, 3, 7, 9)),
    "Conv2D same": (lambda **o: layers.Conv2D(4, (2, 4), padding="same", **o), (1, 3, 7, 5)),
    "Conv2D stride over kernel": (lambda **o: layers.Conv2D(4, 2, strides=3, **o), (2, 3, 8, 11)),
    "Conv2D dilated": (lambda **o: layers.Conv2D(4, 3, dilation_rate=2, **o), (2, 3, 9, 7)),
    "Conv2D no bias": (lambda **o: layers.Conv2D(4, 1, use_bias=False, **o), (1, 3, 5, 1)),
    "Conv2D groups": (lambda **o: layers.Conv2D(4, 3, groups=2, **o), (2, 4, 7, 9)),
    "Conv3D": (lambda **o: layers.Conv3D(2, 2, strides=(1, 2, 1), **o), (2, 3, 4, 5, 3)),
    "Conv1DTranspose": (lambda **o: layers.Conv1DTranspose(4, 3, strides=2, **o), (2, 3, 5)),
    "Conv2DTranspose": (
        lambda **o: layers.Conv2DTranspose(
            4, 3, strides=2, padding="same", output_padding=1, activation="tanh", **o
        ),
        (2, 3, 5, 4),
    ),
    "Conv3DTranspose": (lambda **o: layers.Conv3DTranspose(2, 2, strides=2, **o), (1, 3, 2, 3, 2)),
    "DepthwiseConv1D": (lambda **o: layers.DepthwiseConv1D(3, depth_multiplier=2, **o), (2, 3, 7)),
    "DepthwiseConv2D": (lambda **o: layers.DepthwiseConv2D(3, strides=2, **o), (2, 3, 7, 8)),
    "SeparableConv1D": (lambda **o: layers.SeparableConv1D(4, 3, **o), (2, 3, 7)),
    "SeparableConv2D": (
        lambda **o: layers.SeparableConv2D(4, 3, padding="same", **o),
        (1, 3, 5, 6),
    ),
    "MaxPooling1D": (lambda **o: layers.MaxPooling1D(2, **o), (2, 3, 7)),
    "MaxPooling2D": (lambda **o: layers.MaxPooling2D(2, strides=3, **o), (2, 3, 7, 8)),
    "MaxPooling3D": (lambda **o: layers.MaxPooling3D(2, padding="same", **o), (1, 3, 3, 4, 5)),
    "AveragePooling1D": (lambda **o: layers.AveragePooling1D(3, padding="same", **o), (2, 3, 7)),
    "AveragePooling2D": (lambda **o: layers.AveragePooling2D((2, 3), **o), (2, 3, 7, 8)),
    "AveragePooling3D": (lambda **o: layers.AveragePooling3D(2, **o), (1, 3, 4, 4, 5)),
    "GlobalMaxPooling1D": (lambda **o: layers.GlobalMaxPooling1D(**o), (2, 3, 7)),
    "GlobalMaxPooling2D": (lambda **o: layers.GlobalMaxPooling2D(keepdims=True, **o), (2, 3, 7, 8)),
    "GlobalAveragePooling1D": (lambda **o: layers.GlobalAveragePooling1D(**o), (2, 3, 7)),
    "GlobalAveragePooling2D": (lambda **o: layers.GlobalAveragePooling2D(**o), (2, 3, 7, 8)),
    "GlobalAveragePooling3D": (
        lambda **o: layers.GlobalAveragePooling3D(keepdims=True, **o),
        (1, 3, 3, 4, 5),
    ),
    "UpSampling2D": (lambda **o: layers.UpSampling2D((2, 3), **o), (2, 3, 3, 4)),
    "UpSampling2D bilinear": (
        lambda **o: layers.UpSampling2D(2, interpolation="bilinear", **o),
        (1, 3, 3, 4),
    ),
    "UpSampling3D": (lambda **o: layers.UpSampling3D(2, **o), (1, 3, 2, 3, 2)),
    "Cropping2D": (lambda **o: layers.Cropping2D(((1, 0), (2, 1)), **o), (2, 3, 5, 6)),
    "Cropping3D": (lambda **o: layers.Cropping3D(1, **o), (1, 2, 3, 4, 5)),
    "ZeroPadding1D": (lambda **o: layers.ZeroPadding1D((1, 2), **o), (2, 3, 5)),
    "ZeroPadding2D": (lambda **o: layers.ZeroPadding2D(((1, 2), (0, 3)), **o), (2, 3, 5, 6)),
    "ZeroPadding3D": (lambda **o: layers.ZeroPadding3D(1, **o), (1, 2, 3, 4, 5)),
}


if hasattr(layers, "AdaptiveAveragePooling2D"):  # since Keras 3.14
    SPATIAL |= {
        "AdaptiveAveragePooling2D": (
            lambda **o: layers.AdaptiveAveragePooling2D((2, 3), **o),
            (2, 3, 7, 8),
        ),
        "AdaptiveMaxPooling1D": (lambda **o: layers.AdaptiveMaxPooling1D(3, **o), (2, 3, 7)),
    }
# TensorFlow's kernels for these are float32 at most.
NO_FLOAT64 = ("MaxPooling3D", "AveragePooling3D")


# The code for one and three dimensions is that for two.
IN_OTHER_DIMENSIONS = (
    *("Conv1D causal", "Conv3DTranspose", "DepthwiseConv1D", "SeparableConv1D", "MaxPooling1D"),
    *("AveragePooling1D", "AveragePooling3D", "GlobalMaxPooling1D", "GlobalAveragePooling1D"),
    *("UpSampling3D", "Cropping3D", "ZeroPadding1D", "ZeroPadding3D"),
)


@pytest.mark.parametrize("name", with_slow(SPATIAL, IN_OTHER_DIMENSIONS))
def test_spatial_layers_are_their_channels_last_twins(name, rng):
    make, shape = SPATIAL[name]
    dtype, tolerance = ("float32", 1e-6) if name in NO_FLOAT64 else ("float64", 1e-13)
    first, last = make(**FIRST, dtype=dtype), make(data_format="channels_last", dtype=dtype)
    x = images(rng, *shape, dtype=dtype)
    first.build(shape)
    last.build(to_last(x).shape)
    shake(first, rng)
    last.set_weights(first.get_weights())
    model, twin = keras.Sequential([first]), keras.Sequential([last])
    y, _, dx, *others = Run(model, shape, context=laid_out(model), dtype=dtype, weigh=alike)(x)
    twin_run = Run(twin, to_last(x).shape, dtype=dtype, weigh=alike)
    twin_y, _, twin_dx, *twin_others = twin_run(to_last(x))
    assert_close([y, dx, *others], [to_first(twin_y), to_first(twin_dx), *twin_others], tolerance)


def through(x, *steps):
    for step in steps:
        x = step(x)
    return x


def functional(shape, body, **options):
    inputs = keras.Input(shape[1:], dtype=keras.config.dtype_policy().compute_dtype)
    return keras.Model(inputs, body(inputs), **options)


def permuted(x):
    return through(conv()(x), layers.Permute((2, 3, 1)), layers.Dense(2))


def split_heads(x):
    """Channels to a sequence, as in front of a transformer."""
    x = layers.Permute((2, 1))(layers.Reshape((4, 30))(conv()(x)))
    return layers.MultiHeadAttention(2, 3)(x, x)


def excited(x):
    """Squeeze and excitation, as in EfficientNet written channels_first."""
    x = conv(8)(x)
    gate = layers.Reshape((8, 1, 1))(layers.GlobalAveragePooling2D(**FIRST)(x))
    gate = conv(8, 1, activation="sigmoid")(conv(2, 1, activation="silu")(gate))
    return conv()(layers.Multiply()([x, gate]))


def joined(x):
    a, b = conv(4, name="a")(x), conv(3, strides=1, activation="relu")(x)
    return conv()(layers.Concatenate(axis=1)([a, b, x]))


def joined_elsewhere(x):
    a, b = conv()(x), conv()(x)
    wide = layers.Concatenate(axis=-1)([a, b])
    tall = layers.Concatenate(axis=2)([a, b])
    batch = keras.ops.concatenate([a, b], axis=0)
    return [conv()(wide), conv()(tall), layers.Flatten()(batch)]


def operators(x):
    a, b = conv()(x), conv()(x)
    y = keras.ops.relu(a + b) * 2.0 - a / 3 + 1.5
    return conv()(keras.ops.maximum(keras.ops.concatenate([y, -b], axis=1), 0.1))


def with_unknown_code(x):
    x = layers.Lambda(lambda t: t * tf.cast(tf.shape(t)[1], t.dtype))(conv()(x))
    x = layers.Activation(lambda t: t * t)(conv()(x))
    return conv(activation=lambda t: tf.nn.softmax(t))(conv(activation="softmax")(x))


def dense_inside(x):
    return conv()(layers.Dense(6)(conv()(x)))


def nested(x):
    inner = keras.Sequential([conv(), layers.BatchNormalization(axis=1), layers.ReLU()])
    other = functional((None, 4, 5, 6), lambda t: [conv()(t), layers.MaxPooling2D(2, **FIRST)(t)])
    same, small = other(inner(x))
    return [conv()(layers.Add()([same, inner(x)])), small]


def wrapped(x):
    x = layers.SpectralNormalization(conv())(x)
    x = layers.Reshape((2, 2, 5, 6))(x)
    return layers.TimeDistributed(conv())(x)


def between(*makes):
    """Layers between convolutions; each reads what others read, too."""

    def body(x):
        x, shared = conv()(x), conv()
        return [shared(layers.Add()([make()(x), x])) for make in makes]

    return body


CHAINS = {
    "normalizations": between(
        lambda: layers.BatchNormalization(axis=1),
        lambda: layers.BatchNormalization(axis=2),
        lambda: layers.BatchNormalization(axis=1, trainable=False),
        lambda: layers.GroupNormalization(2, axis=1),
        lambda: layers.GroupNormalization(2, axis=-3),
        lambda: layers.LayerNormalization(axis=1),
        lambda: layers.LayerNormalization(axis=[1, 2, 3]),
        lambda: layers.LayerNormalization(),
        lambda: layers.UnitNormalization(axis=1),
    ),
    "activations": between(
        lambda: layers.Softmax(axis=1),
        lambda: layers.Softmax(axis=[2, 3]),
        lambda: layers.ReLU(6.0, 0.1),
        lambda: layers.LeakyReLU(),
        lambda: layers.ELU(),
        lambda: layers.Activation("gelu"),
        lambda: layers.Activation("softmax"),
        lambda: layers.Activation("log_softmax"),
        lambda: layers.Activation(tf.nn.tanh),
        lambda: layers.PReLU("normal"),
        lambda: layers.PReLU("normal", shared_axes=[2, 3]),
        lambda: layers.Rescaling(0.5, 1.0),
    ),
    "random layers": between(
        lambda: layers.Dropout(0.5),
        lambda: layers.Dropout(0.5, noise_shape=(None, 1, 5, 1)),
        lambda: layers.SpatialDropout2D(0.5, **FIRST),
        lambda: layers.SpatialDropout2D(0.5, data_format="channels_last"),
        lambda: layers.GaussianDropout(0.5),
    ),
    "permuted": permuted,
    "split_heads": split_heads,
    "excited": excited,
    "joined": joined,
    "joined_elsewhere": joined_elsewhere,
    "operators": operators,
    "with_unknown_code": with_unknown_code,
    "dense_inside": dense_inside,
    "nested": nested,
    "wrapped": wrapped,
    "Flatten": lambda x: layers.Dense(3)(layers.Flatten()(conv()(x))),
    "Flatten first": lambda x: layers.Dense(3)(layers.Flatten(**FIRST)(conv()(x))),
}
SHAPE = (2, 3, 5, 6)


def both_ways(model, rng, training=True, shape=SHAPE):
    """A step as Keras computes it, and laid out: results, and what it leaves behind."""
    dtype = model.compute_dtype
    others = model.non_trainable_variables  # statistics, and seeds
    before = [v.numpy() for v in others]
    x = images(rng, *shape, dtype=dtype)
    for context in (as_written(model), laid_out(model)):
        run = Run(model, shape, context=context, dtype=dtype, training=training)
        yield [*run(x), *(v.numpy() for v in others)]
        for variable, value in zip(others, before, strict=True):
            variable.assign(value)


@pytest.fixture
def float64():
    keras.config.set_dtype_policy("float64")


@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_what_keras_computes(name, rng, float64):
    model = functional(SHAPE, CHAINS[name])
    shake(model, rng)
    written, laid = both_ways(model, rng)
    assert_close(laid, written, 1e-11)


def test_one_dimension(rng, float64):
    """Some layers of one dimension have no data_format: their channels are always last."""

    def body(x):
        x = layers.MaxPooling1D(2, **FIRST)(x)
        x = layers.Cropping1D(1)(layers.UpSampling1D(2)(layers.SpatialDropout1D(0.5)(x)))
        x = layers.ZeroPadding1D(1, **FIRST)(layers.Reshape((4, -1))(layers.ReLU()(x)))
        return layers.GlobalMaxPooling1D(**FIRST)(layers.BatchNormalization(axis=1)(x))

    model = functional((2, 3, 9), body)
    shake(model, rng)
    written, laid = both_ways(model, rng, shape=(2, 3, 9))
    assert_close(laid, written, 1e-11)


def test_regularizers_and_their_losses(rng):
    """In float32, as Keras's regularizers are."""
    body = between(
        lambda: layers.Identity(),
        lambda: layers.ActivityRegularization(0.1, 0.1),
        lambda: conv(activity_regularizer="l2", kernel_regularizer="l1"),
    )
    written, laid = both_ways(functional(SHAPE, body), rng)
    assert_close(laid, written)


@pytest.mark.parametrize(
    "name", [pytest.param("normalizations", marks=pytest.mark.slow), "random layers"]
)
def test_layers_know_inference_from_training(name, rng, float64):
    model = functional(SHAPE, CHAINS[name])
    shake(model, rng)
    written, laid = both_ways(model, rng, training=False)
    assert_close(laid, written, 1e-11)


class Residual(keras.Model):
    """A model with a call of its own."""

    def __init__(self, blocks=2):
        super().__init__()
        self.stem = conv(4)
        self.blocks = [[conv(4), layers.BatchNormalization(axis=1)] for _ in range(blocks)]
        self.pool = layers.GlobalAveragePooling2D(**FIRST)
        self.head = layers.Dense(3)

    def call(self, x, training=False):
        x = self.stem(x)
        for convolution, norm in self.blocks:
            x = tf.nn.relu(x + norm(convolution(x), training=training))
            self.add_loss(1e-3 * tf.reduce_mean(tf.abs(x[:, 1])))
        return self.head(self.pool(x))


def test_a_call_of_the_users_own(rng, float64):
    model = Residual()
    with as_written(model):
        model(images(rng, *SHAPE))
    shake(model, rng)
    written, laid = both_ways(model, rng)
    assert_close(laid, written, 1e-11)


class Penalized(keras.Model):
    """As a critic is trained with a penalty on its gradient at a generator's output."""

    def __init__(self):
        super().__init__()
        self.generator = functional(SHAPE, lambda x: conv(3)(layers.ReLU()(conv()(x))))
        self.critic = functional(SHAPE, lambda x: conv(2)(conv(activation="tanh")(x)))

    def call(self, x):
        made = self.generator(x)
        again = self.critic(made)
        with tf.GradientTape() as tape:
            tape.watch(made)
            verdict = tf.reduce_sum(tf.sin(self.critic(made)))
        return [again, tape.gradient(verdict, made, unconnected_gradients="zero")]


class Saliency(keras.Model):
    """A gradient with respect to an output of a Functional model that other layers read."""

    def __init__(self):
        super().__init__()
        self.core = functional(SHAPE, lambda x: self.both(conv()(x)))

    def both(self, features):
        return [features, layers.Dense(2)(layers.Flatten(**FIRST)(conv(2)(features)))]

    def call(self, x):
        with tf.GradientTape() as tape:
            features, logits = self.core(x)
            value = tf.reduce_sum(tf.square(logits))
        return [logits, tape.gradient(value, features, unconnected_gradients="zero")]


class Tap(layers.Layer):
    """Passes its input on, and remembers it."""

    def call(self, x):
        self.seen = x
        return x


class Tapped(keras.Model):
    """A gradient with respect to a tensor that a layer in a Functional model has seen."""

    def __init__(self):
        super().__init__()
        self.tap = Tap()
        self.core = functional(SHAPE, lambda x: self.chain(conv()(x)))

    def chain(self, x):
        first = conv(2)(x)
        return layers.Multiply()([first, conv(2)(self.tap(x))])

    def call(self, x):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(tf.square(self.core(x)))
        return tape.gradient(value, self.tap.seen, unconnected_gradients="zero")


class Watcher(layers.Layer):
    """A layer of a Functional model with a tape inside."""

    def __init__(self):
        super().__init__()
        self.inner = conv(4)

    def call(self, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(tf.square(self.inner(x)))
        return tape.gradient(value, x, unconnected_gradients="zero")


def watcher_inside():
    return functional(SHAPE, lambda x: conv()(Watcher()(conv()(x))))


def rematerialized():
    def body(x):
        with keras.RematScope(mode="full"):
            first = conv()
        x = conv()(x)
        return layers.Add()([first(x), conv()(x)])

    return functional(SHAPE, body)


def rematerialized_input():
    def body(x):
        with keras.RematScope(mode="full"):
            first = conv()
        return layers.Add()([first(x), conv()(x)])

    return functional(SHAPE, body)


@pytest.mark.parametrize(
    "make",
    [
        Penalized,
        pytest.param(Saliency, marks=pytest.mark.slow),
        Tapped,
        watcher_inside,
        pytest.param(rematerialized, marks=pytest.mark.slow),
        rematerialized_input,
    ],
    ids=lambda make: make.__name__,
)
def test_gradients_with_respect_to_anything(make, rng, float64):
    """Inner tapes see what they would see without the pass."""
    model = make()
    model.build(SHAPE)
    shake(model, rng)
    written, laid = both_ways(model, rng)
    assert_close(laid, written, 1e-10)
    assert all(np.any(array) for array in written if array.ndim > 1)


def unet(first):
    """A U-Net with two levels, in either format."""
    options = {"data_format": "channels_first" if first else "channels_last"}
    axis = 1 if first else -1

    def block(x, filters):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, **options)(x)
        return layers.ReLU()(layers.BatchNormalization(axis=axis)(x))

    x = inputs = keras.Input((3, 22, 26) if first else (22, 26, 3))
    skips = []
    for filters in (4, 8):
        skips.append(block(layers.ZeroPadding2D(1, **options)(x), filters))
        x = layers.MaxPooling2D(2, **options)(skips[-1])
    x = layers.SpatialDropout2D(0.5, **options)(block(x, 12))
    for filters, skip in zip((8, 4), reversed(skips), strict=True):
        x = layers.Conv2DTranspose(filters, 2, strides=2, **options)(x)
        x = block(layers.Concatenate(axis=axis)([skip, x]), filters)
        x = layers.Cropping2D(1, **options)(x)
    outputs = layers.Conv2D(2, 1, activation="sigmoid", **options)(x)
    return keras.Model(inputs, outputs)


def resnet50(first):
    keras.config.set_image_data_format("channels_first" if first else "channels_last")
    try:
        shape = (3, 40, 40) if first else (40, 40, 3)
        core = keras.applications.ResNet50(weights=None, input_shape=shape, include_top=False)
        x = layers.GlobalAveragePooling2D()(core.output)
    finally:
        keras.config.set_image_data_format("channels_last")
    return keras.Model(core.input, layers.Dense(7)(x))


TWINS = [unet, pytest.param(resnet50, marks=pytest.mark.slow)]


@pytest.mark.parametrize("make", TWINS)
@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_networks_are_their_channels_last_twins(make, training, rng):
    first, last = make(True), make(False)
    assert [v.path.split("/")[-1] for v in first.weights] == [
        v.path.split("/")[-1] for v in last.weights
    ]
    last.set_weights(first.get_weights())
    if training and make is unet:  # it draws other masks where the channels are last
        for model in (first, last):
            for layer in model.layers:
                if isinstance(layer, layers.SpatialDropout2D):
                    layer.rate = 0.0
    x = images(rng, 3, *first.input_shape[1:])
    y, total, dx, *others = run_twin(first, x, laid_out(first), training)
    twin_y, twin_total, twin_dx, *twin_others = run_twin(last, to_last(x), None, training)
    assert_close([y, total, dx], [to_first(twin_y), twin_total, to_first(twin_dx)])
    assert_close(others, twin_others)


def run_twin(model, x, context, training):
    results = Run(model, x.shape, context=context, training=training, weigh=alike)(x)
    statistics = [v.numpy() for v in model.non_trainable_variables if v.dtype == "float32"]
    return [*results, *statistics]


def transposes(model, *others, shape=SHAPE, training=True):
    run = Run(model, shape, context=laid_out(model, *others), training=training)
    found = count(run.function, np.ones(shape, "float32"))
    return found["Transpose"]


def test_transposes_remain_at_the_edges_only():
    """One for the input and one for its gradient; likewise for images that come out."""

    def classifier(x):
        x = conv()(x)
        for _ in range(2):
            y = layers.ReLU()(layers.BatchNormalization(axis=1)(conv()(x)))
            x = layers.Concatenate(axis=1)([layers.Add()([x, y]), y])
            x = conv(4, strides=2, activation="relu")(x)
        return layers.Dense(2)(layers.GlobalAveragePooling2D(**FIRST)(x))

    assert transposes(functional(SHAPE, classifier)) == 2
    flat_classifier = functional(
        SHAPE, lambda x: layers.Dense(3)(layers.Flatten(**FIRST)(conv()(conv()(x))))
    )
    assert transposes(flat_classifier) == 2
    inner = functional((None, 4, 5, 6), lambda t: layers.ReLU()(conv()(t)))
    nested_model = functional(SHAPE, lambda x: layers.Flatten(**FIRST)(inner(inner(conv()(x)))))
    assert transposes(nested_model) == 2
    assert transposes(functional(SHAPE, lambda x: conv()(conv()(x)))) == 4
    # One more for the mask of SpatialDropout, a number a channel.
    assert transposes(unet(first=True), shape=(1, 3, 22, 26)) == 5


@pytest.mark.slow
def test_a_call_of_the_users_own_keeps_three_transposes_a_fork(rng):
    counts = []
    for blocks in (1, 2):
        model = Residual(blocks)
        with as_written(model):
            model(images(rng, *SHAPE))
        counts.append(transposes(model))
    assert counts[1] - counts[0] <= 10


def test_masks_are_left_alone(rng):
    """A mask has the dimensions of what the user wrote."""
    x = images(rng, 2, 3, 3)
    x[:, 1] = 0.0
    model = functional((2, 3, 3), lambda t: layers.BatchNormalization(axis=1)(layers.Masking()(t)))
    pooled = functional(
        (2, 3, 3),
        lambda t: layers.GlobalAveragePooling1D(**FIRST)(
            layers.ReLU()(layers.Masking()(t)), mask=layers.Lambda(lambda m: m[:, :, 0] > 0)(t)
        ),
    )
    for one in (model, pooled):
        plain = Run(one, x.shape, training=True)(x)
        assert_close(Run(one, x.shape, context=laid_out(one), training=True)(x), plain, 1e-7)


def workload_of(*parts, device=CPU):
    model = keras.Model()
    model.parts = list(parts)
    return Workload(model, device=device)


class OwnCall(layers.Conv2D):
    def call(self, inputs):
        return super().call(inputs)


class OwnOperation(layers.Conv2D):
    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel)


def test_refusals_name_the_layer():
    for layer in (layers.Conv2D(1, 1), layers.Flatten(**FIRST)):
        assert Layout().unsupported(workload_of(layer)).kind is Refusal.NOTHING
    for layer, refusal, named in (
        (OwnCall(1, 1, name="mine", **FIRST), Refusal.OWN_CODE, "`call`"),
        (OwnOperation(1, 1, name="op", **FIRST), Refusal.OWN_CODE, "`convolution_op`"),
        (layers.ConvLSTM2D(1, 1, name="rnn", **FIRST), Refusal.CASE, "ConvLSTM2D"),
    ):
        unsupported = Layout().unsupported(workload_of(layer))
        assert unsupported.kind is refusal
        assert repr(layer.name) in unsupported.cause and named in unsupported.cause
        assert "channels_last" in unsupported.remedy
        assert Layout().unsupported(workload_of(layer, conv())) is None
    shadowed = conv(name="patched")
    shadowed.call = lambda inputs: inputs
    assert "'patched'" in Layout().unsupported(workload_of(shadowed)).cause


def test_obstacles_tell_of_every_channels_first_layer():
    parts = [conv(), OwnCall(1, 1, **FIRST), layers.ReLU(), layers.MaxPooling2D(**FIRST)]
    found = list(Layout().layers(workload_of(*parts)))
    assert [(layer, bool(obstacle)) for layer, obstacle in found] == [
        (parts[0], False),
        (parts[1], True),
        (parts[3], False),
    ]


def test_several_replicas_are_refused():
    strategy = types.SimpleNamespace(num_replicas_in_sync=2)
    unsupported = Layout().unsupported(
        Workload(types.SimpleNamespace(distribute_strategy=strategy))
    )
    assert unsupported.kind is Refusal.REPLICAS


@pytest.mark.parametrize(
    "error, helps",
    [
        (tf.errors.UnimplementedError(None, None, "only supports the NHWC tensor format"), True),
        (tf.errors.InvalidArgumentError(None, None, "only supports NDHWC on the CPU"), True),
        (tf.errors.InvalidArgumentError(None, None, "shapes differ"), False),
        (ValueError("NHWC"), False),
    ],
)
def test_it_rescues_steps_that_lack_kernels(error, helps):
    assert bool(Layout().fallback_reason(error)) is helps


def test_a_bias_is_added_along_the_channels(rng):
    """Keras adds it along the width where that is as long as the channels."""
    model = functional((1, 2, 5, 4), lambda x: conv(4, 1, bias_initializer="normal")(x))
    model.layers[1].bias.assign([1.0, 2.0, 3.0, 4.0])
    y, *_ = Run(model, (1, 2, 5, 4), context=laid_out(model))(np.zeros((1, 2, 5, 4), "float32"))
    np.testing.assert_array_equal(y[0, :, 0, 0], [1.0, 2.0, 3.0, 4.0])


def test_fused_norm_goes_along(rng):
    """BatchNormalization along the channels is one op where they are last."""

    def body(x):
        x = layers.BatchNormalization(axis=1)(conv()(x))
        x = layers.LayerNormalization(axis=1)(conv()(x))
        return conv()(layers.BatchNormalization(axis=1)(conv()(x)))

    model = functional(SHAPE, body)
    shake(model, rng)
    x = images(rng, *SHAPE)
    others = model.non_trainable_variables
    before = [v.numpy() for v in others]
    results = []
    for passes in ([], [FusedNorm()]):
        run = Run(model, SHAPE, context=laid_out(model, *passes), training=True)
        results.append([*run(x), *(v.numpy() for v in others)])
        for variable, value in zip(others, before, strict=True):
            variable.assign(value)
    assert_close(results[1], results[0], 1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_mixed_precision_goes_along(dtype, rng):
    """16-bit layers, and no transposes between them; dropout masks drawn as without."""

    def body(x):
        x = layers.BatchNormalization(axis=1)(conv(use_bias=False)(x))
        x = layers.PReLU("normal")(layers.Dropout(0.5)(layers.ReLU()(x)))
        return layers.Dense(3)(layers.GlobalAveragePooling2D(**FIRST)(conv()(x)))

    model = functional(SHAPE, body)
    shake(model, rng)
    (seed,) = (v for v in model.non_trainable_variables if "seed" in v.path)
    drawn = seed.numpy()
    plain, mixed = (
        Run(model, SHAPE, context=laid_out(model, *passes), training=True)
        for passes in ([], [MixedPrecision(dtype)])
    )
    x = images(rng, *SHAPE)
    expected = plain(x)
    seed.assign(drawn)
    assert_close(mixed(x), expected, {"bfloat16": 0.1, "float16": 0.02}[dtype])
    kernels = [n for n in mixed.function.graph.get_operations() if n.type == "Conv2D"]
    assert kernels
    # Eigen's convolutions add up in bfloat16, so there they get their operands in float32.
    computed = "float32" if dtype == "bfloat16" and not onednn_is_on() else dtype
    assert {n.outputs[0].dtype.name for n in kernels} == {computed}
    assert {n.get_attr("data_format") for n in kernels} == {b"NHWC"}


@pytest.mark.slow
def test_xla_compiles_it(rng):
    model = functional(SHAPE, CHAINS["joined"])
    x = images(rng, *SHAPE)
    plain = Run(model, SHAPE, context=as_written(model), training=True)(x)
    run = Run(model, SHAPE, context=laid_out(model), training=True, jit_compile=True)
    assert_close(run(x), plain)


def test_an_unbuilt_model_is_built_as_it_is_written(rng):
    model = keras.Sequential(
        [conv(), layers.BatchNormalization(axis=1), layers.Flatten(), layers.Dense(2)]
    )
    with laid_out(model):
        y = tf.function(model)(tf.ones(SHAPE))
    assert model.layers[0].kernel.shape == (3, 3, 3, 4)
    assert model.layers[1].gamma.shape == (4,)
    with as_written(model):
        np.testing.assert_allclose(y, model(tf.ones(SHAPE)), atol=1e-5)


def small_model(first, seed=3):
    keras.utils.set_random_seed(seed)
    options = {"data_format": "channels_first" if first else "channels_last"}
    axis = 1 if first else -1
    x = inputs = keras.Input((2, 8, 9) if first else (8, 9, 2))
    x = layers.Conv2D(4, 3, use_bias=False, **options)(x)
    x = layers.ReLU()(layers.BatchNormalization(axis=axis)(x))
    x = layers.Flatten(**options)(layers.MaxPooling2D(2, **options)(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, metrics=["accuracy"])
    return model


def test_a_channels_first_model_trains_like_its_channels_last_twin(rng):
    """Everywhere, also on a CPU without channels_first convolutions."""
    x, y = images(rng, 40, 2, 8, 9), rng.integers(0, 3, 40)
    first, last = small_model(True), small_model(False)
    plan = [Layout(), FusedOptimizer()]
    accel = tfaccel.AccelCallback(plan, verbose=0)
    options = {"batch_size": 8, "epochs": 3, "shuffle": False, "verbose": 0}
    history = first.fit(x, y, callbacks=[accel], **options).history
    expected = last.fit(to_last(x), y, **options).history
    assert accel.plan.names == ("layout", "fused_optimizer")
    for key, values in expected.items():
        np.testing.assert_allclose(history[key], values, rtol=1e-4)
    for a, b in zip(first.weights, last.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


class OwnStep(keras.Model):
    """A train_step of the user's own around a channels_first model."""

    def train_step(self, data):
        x, _ = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(x, training=True)))
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {"own": loss}


def test_a_train_step_of_the_users_own(rng):
    inputs = keras.Input(SHAPE[1:])
    model = OwnStep(inputs, conv()(layers.ReLU()(conv()(inputs))))
    model.compile("sgd")
    x = images(rng, 16, *SHAPE[1:])
    history = model.fit(
        x, np.zeros(16), epochs=3, verbose=0, callbacks=[tfaccel.AccelCallback([Layout()])]
    ).history
    assert history["own"][-1] < history["own"][0]
