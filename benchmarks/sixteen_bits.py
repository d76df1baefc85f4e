"""What bfloat16 does to single sums, and to the gradients of whole models.

    python benchmarks/sixteen_bits.py --sums
    python benchmarks/sixteen_bits.py --models transformer,unet1d,lstm,resnet50,mobilenetv2

Errors are norms of differences, as shares of the exact result's norm: of sums against
float64 (float32 where TensorFlow has no float64) on the same bfloat16 inputs, in units of
2^-9, which one rounding costs at most; of gradients against float32 at the first weights.
TF_ENABLE_ONEDNN_OPTS=0 and =1 are two sets of kernels.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import _common
import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.passes import ExactReductions, MixedPrecision

_SUMS = flags.DEFINE_bool("sums", False, "the errors of single sums")
_MODELS = flags.DEFINE_list("models", [], "the errors of these models' gradients")
_VOCABULARY = 8000

layers = keras.layers
_rng = np.random.default_rng(0)


def _random(*shape: int, mean: float = 0.5) -> tf.Tensor:
    return tf.constant(mean + _rng.normal(size=shape), tf.bfloat16)


def _gradient(function: Callable[..., Any], of: int = 0) -> Callable[..., Any]:
    """The gradient of `function`, for what its last argument says comes back."""

    def gradient(*args: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(args[of])
            y = function(*args[:-1])
        return tape.gradient(y, args[of], tf.cast(args[-1], y.dtype))

    return gradient


def _back(x: tf.Tensor, channels: int, **options: Any) -> tf.Tensor:
    bias = tf.zeros(channels, x.dtype)
    return _gradient(lambda b: tf.nn.bias_add(tf.zeros_like(x), b, **options))(bias, x)


def _filters(x: tf.Tensor, dy: tf.Tensor, convolve: Callable[..., Any], *shape: int) -> tf.Tensor:
    run = _gradient(lambda w: convolve(x, w, [1, 1, 1, 1], "SAME"))
    return run(tf.zeros(shape, x.dtype), dy)


def _projected(x: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
    return tf.einsum("abcd,abce->de", x, dy)


def _segments(x: tf.Tensor) -> tf.Tensor:
    return tf.math.unsorted_segment_sum(x, tf.range(len(x)) % 100, 100)


def sums() -> Iterator[tuple[str, Callable[..., Any], tuple[tf.Tensor, ...]]]:
    """A name, a function of tensors, and bfloat16 tensors for it."""
    rows, images, many = _random(32768, 32), _random(8, 64, 64, 32), _random(512, 32, 32, 32)
    first, small = _random(2048, 16, 8, 8), _random(32, 8, 128, 128, mean=0.0)
    sequence, volume = _random(32, 128, 256), _random(4, 16, 28, 28, 16)
    pool, pool3 = _random(16, 56, 56, 64), (14, 14, 14)

    def conv(*args: Any) -> tf.Tensor:
        return tf.nn.conv2d(*args)

    def depthwise(*args: Any) -> tf.Tensor:
        return tf.nn.depthwise_conv2d(*args)

    yield "gradient of BiasAdd, 32768x32", lambda x: _back(x, 32), (rows,)
    yield "the same, mean 0", lambda x: _back(x, 32), (_random(32768, 32, mean=0.0),)
    nchw = {"data_format": "NCHW"}
    yield "gradient of BiasAdd, 2048x16x8x8, NCHW", lambda x: _back(x, 16, **nchw), (first,)
    yield "reduce_sum of 32768 rows", lambda x: tf.reduce_sum(x, 0), (rows,)
    yield "product with a row of ones", lambda x: tf.ones((1, len(x)), x.dtype) @ x, (rows,)
    add = _gradient(lambda b, x: x + b)
    yield "gradient of x + (256,)", add, (_random(256), sequence, sequence)
    yield "gradient of x + (128, 1)", add, (_random(128, 1), sequence, sequence)
    multiply = _gradient(lambda b, x: x * b)
    yield "gradient of x * (256,)", multiply, (_random(256), sequence, _random(32, 128, 256))
    yield "reduce_mean of all (loss)", tf.reduce_mean, (rows,)
    yield "global pooling, 56x56", lambda x: tf.reduce_mean(x, [1, 2]), (pool,)
    for size in (2, 7, 28):
        run = lambda x, size=size: tf.nn.avg_pool(x, size, size, "VALID")  # noqa: E731
        yield f"AveragePooling2D {size}x{size}", run, (pool,)
        yield "its gradient", _gradient(run), (pool, _random(16, 56 // size, 56 // size, 64))
    yield "AveragePooling3D 14x14x14", lambda x: tf.nn.avg_pool(x, pool3, pool3, "VALID"), (volume,)
    softmax = lambda x: tf.nn.softmax(x)  # noqa: E731 (looked up when it is called)
    yield "softmax of 128", softmax, (small,)
    yield "its gradient", _gradient(softmax), (small, _random(*small.shape, mean=0.0))
    yield "log_softmax of 128", tf.nn.log_softmax, (small,)
    yield "logsumexp of 128", lambda x: tf.reduce_logsumexp(x, -1), (small,)
    yield "moments of 32768", lambda x: tf.concat(tf.nn.moments(x, [0]), 0), (rows,)
    yield "cumsum of 32768", lambda x: tf.math.cumsum(x), (rows,)
    yield "segment sums of 328", _segments, (rows,)
    filters = lambda x, u: _filters(x, u, conv, 3, 3, 32, 32)  # noqa: E731
    yield "conv2d 3x3, weights' gradient, 32768 rows", filters, (images, images)
    pointwise = lambda x, u: _filters(x, u, conv, 1, 1, 32, 32)  # noqa: E731
    yield "conv2d 1x1, weights' gradient, 524288 rows", pointwise, (many, many)
    deep = lambda x, u: _filters(x, u, depthwise, 3, 3, 32, 1)  # noqa: E731
    yield "depthwise 3x3, weights' gradient, 524288 rows", deep, (many, many)
    yield "einsum, weights' gradient, 524288 rows", _projected, (many, many)
    yield "embedding, cast behind it: its gradient", _embedded, (sequence,)
    for layer in (
        layers.LayerNormalization(),
        layers.BatchNormalization(),
        layers.GroupNormalization(8),
        layers.RMSNormalization(),
    ):
        yield f"gamma, beta of {type(layer).__name__}", _Normal(layer), (rows, _random(32768, 32))


def _embedded(x: tf.Tensor) -> tf.Tensor:
    table = tf.zeros((100, 256), tf.float32)
    ids = tf.reshape(tf.range(32 * 128) % 100, (32, 128))
    return tf.convert_to_tensor(_gradient(lambda t: tf.cast(tf.gather(t, ids), x.dtype))(table, x))


class _Normal:
    """The gradients of a normalisation's weights, in the dtype of what it is given."""

    def __init__(self, layer: Any):
        self._config = type(layer), layer.get_config()
        self._made: dict[str, Any] = {}

    def __call__(self, x: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
        policy = "mixed_bfloat16" if x.dtype == tf.bfloat16 else x.dtype.name
        with tf.init_scope():
            if policy not in self._made:
                kind, config = self._config
                self._made[policy] = kind.from_config({**config, "dtype": policy})
                self._made[policy].build(x.shape)
        layer = self._made[policy]
        with tf.GradientTape() as tape:
            y = layer(x, training=True)
        found = tape.gradient(y, [w.value for w in layer.trainable_weights], dy)
        return tf.concat([tf.cast(g, tf.float64) for g in found], 0)


def _error(found: Any, exact: Any) -> float:
    found, exact = np.asarray(tf.cast(found, tf.float64)), np.asarray(tf.cast(exact, tf.float64))
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def _exact(function: Callable[..., Any], tensors: tuple[tf.Tensor, ...]) -> Any:
    try:
        return function(*(tf.cast(x, tf.float64) for x in tensors))
    except (tf.errors.NotFoundError, tf.errors.InvalidArgumentError):
        return function(*(tf.cast(x, tf.float32) for x in tensors))


def show_sums() -> None:
    """Prints the table of sums."""
    print("| sum | error / 2^-9 | under the passes |\n| --- | ---: | ---: |")
    for name, function, tensors in sums():
        exact = _exact(function, tensors)
        plain = _error(tf.function(function)(*tensors), exact)
        with _exact_reductions():
            mended = _error(tf.function(function)(*tensors), exact)
        print(f"| {name} | {512 * plain:.2f} | {512 * mended:.2f} |", flush=True)


def _exact_reductions() -> contextlib.AbstractContextManager[None]:
    return ExactReductions().applied(StepContext(Workload(keras.Model())))


def _transformer(x: Any) -> Any:
    x = layers.Embedding(_VOCABULARY, 256)(x)
    for _ in range(4):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(8, 32)(x, x))
        y = layers.Dense(256)(layers.Dense(1024, activation="gelu")(x))
        x = layers.LayerNormalization()(x + y)
    return layers.GlobalAveragePooling1D()(x)


def _unet1d(x: Any) -> Any:
    skips = []
    for filters in (32, 64, 128):
        x = layers.Conv1D(filters, 9, padding="same", use_bias=False)(x)
        x = layers.Activation("swish")(layers.BatchNormalization()(x))
        skips.append(x)
        x = layers.MaxPooling1D(4)(x)
    for filters, skip in zip((128, 64, 32), reversed(skips), strict=True):
        x = layers.Conv1DTranspose(filters, 4, strides=4, padding="same")(x)
        x = layers.Concatenate()([x, skip])
        x = layers.Conv1D(filters, 9, padding="same", activation="relu")(x)
    return layers.GlobalAveragePooling1D()(x)


def _lstm(x: Any) -> Any:
    return layers.LSTM(64)(layers.LSTM(64, return_sequences=True)(x))


_BODIES = {  # the model less its head, the shape of a sample, the batch size
    "transformer": (_transformer, (128,), 32),
    "unet1d": (_unet1d, (2048, 4), 16),
    "lstm": (_lstm, (60, 16), 64),
}
_NETS = {
    "resnet50": (keras.applications.ResNet50, 64),
    "mobilenetv2": (keras.applications.MobileNetV2, 96),
}


def _model(name: str, policy: str) -> tuple[keras.Model, tuple[int, ...], int]:
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        if name in _NETS:
            make, size = _NETS[name]
            shape = (size, size, 3)
            return make(weights=None, input_shape=shape, classes=10), shape, 32
        body, shape, batch = _BODIES[name]
        inputs = keras.Input(shape, dtype="int32" if name == "transformer" else "float32")
        outputs = layers.Dense(10, activation="softmax")(body(inputs))
        return keras.Model(inputs, outputs), shape, batch
    finally:
        keras.config.set_dtype_policy("float32")


def _gradients(model: keras.Model, x: Any, y: Any, context: Any) -> list[np.ndarray]:
    loss_function = keras.losses.SparseCategoricalCrossentropy()

    @tf.function(autograph=False)
    def run(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_function(y, tf.cast(model(x, training=True), "float32"))
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    with context:
        found = run(tf.constant(x), tf.constant(y))
    return [np.asarray(tf.convert_to_tensor(g), "float64") for g in found]


def show_gradients(name: str) -> None:
    """Prints a model's rows: each way of computing in bfloat16 against float32."""
    rng = np.random.default_rng(0)
    model, shape, batch = _model(name, "float32")
    mixed = _model(name, "mixed_bfloat16")[0]
    x = rng.standard_normal((batch, *shape)).astype("float32")
    if name == "transformer":
        x = rng.integers(0, _VOCABULARY, (batch, *shape)).astype("int32")
    y, start = rng.integers(0, 10, batch), model.get_weights()
    exact = _gradients(model, x, y, contextlib.nullcontext())
    whole = np.sqrt(sum(np.sum(g * g) for g in exact))
    for how, net, context in (
        ("Keras's mixed_bfloat16", mixed, contextlib.nullcontext()),
        ("the same with exact_reductions", mixed, _exact_reductions()),
        (
            "mixed_precision",
            model,
            MixedPrecision("bfloat16").applied(StepContext(Workload(model))),
        ),
    ):
        net.set_weights(start)
        found = _gradients(net, x, y, context)
        pairs = zip(found, exact, model.trainable_variables, strict=True)
        errors = [(np.linalg.norm(f - e) / whole, v.path) for f, e, v in pairs]
        total = np.sqrt(sum(error**2 for error, _ in errors))
        worst, path = max(errors)
        print(f"| {name} | {how} | {total:.4f} | {worst:.4f} ({path}) |", flush=True)


def main(argv: list[str]) -> None:
    del argv
    print(_common.machine())
    if _SUMS.value:
        show_sums()
    if _MODELS.value:
        print("| model | how | error of the gradient | the worst variable's |")
        print("| --- | --- | ---: | ---: |")
    for name in _MODELS.value:
        show_gradients(name)


if __name__ == "__main__":
    app.run(main)
