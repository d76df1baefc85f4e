"""Layout against the same layers written channels_last, and against Keras as written.

TensorFlow has no channels_first convolutions on some CPUs, so what is written
channels_first is computed in one of two plain ways: by the channels-last twin with
the same weights, or (`as_written`) by Keras's own code with nothing but its
convolution replaced by transposes around `tf.nn.convolution`.
"""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from tfaccel.compat.patching import instance_attribute
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.passes import Layout
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
                results = [floats(y) for y in tf.nest.flatten(outputs)]
                total = tf.add_n([tf.reduce_sum((weigh or apart)(y)) for y in results])
                total += sum(tf.cast(loss, total.dtype) for loss in model.losses)
            gradients = tape.gradient(total, [*inputs, *self.weights])
            return outputs, total, gradients

        with context or contextlib.nullcontext():
            self.function = run.get_concrete_function()

    def __call__(self, *inputs):
        return flat(self.function(*[tf.constant(x) for x in inputs]))


def floats(y):
    return tf.cast(y, tf.float32) if y.dtype == tf.bfloat16 else y


def apart(y):
    """Weighs every element differently, so that none can stand in for another."""
    return tf.square(y + 1) * tf.reshape(tf.sin(tf.range(tf.size(y), dtype=y.dtype)), tf.shape(y))


def alike(y):
    """Weighs elements by their values, wherever they are."""
    return tf.sin(3 * y) * tf.square(y)


def assert_close(actual, expected, tolerance=1e-5):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert (a is None) == (e is None)
        if e is not None:
            scale = max(1.0, float(np.max(np.abs(e), initial=0.0)))
            np.testing.assert_allclose(a / scale, e / scale, rtol=0, atol=tolerance)


def images(rng, *shape, dtype="float32"):
    return rng.normal(size=shape).astype(dtype)


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
