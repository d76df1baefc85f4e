"""The models that the benchmarks train: common shapes of work, on synthetic data."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Build = Callable[[tuple[int, ...], int], keras.Model]

# Enough batches that no step sees the batch of the step before.
_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A model to train, and batches of the right kind for it.

    Attributes:
        name: what it is called on the command line and in the tables.
        build: makes the model from an input shape and a number of classes.
        batch_size: samples in a batch.
        input_shape: the shape of one sample.
        classes: the number of classes.
        input_high: inputs are uniform in [0, input_high).
        vocabulary: where it is not 0, inputs are token ids below it.
        policy: the dtype policy of its layers.
        label_shape: the shape of one sample's labels.
    """

    name: str
    build: Build
    batch_size: int
    input_shape: tuple[int, ...]
    classes: int = 10
    input_high: float = 1.0
    vocabulary: int = 0
    policy: str = "float32"
    label_shape: tuple[int, ...] = ()

    def model(self, seed: int = 0) -> keras.Model:
        """The model, fresh and compiled; the seed decides its weights and dropout."""
        keras.utils.set_random_seed(seed)
        # Clearing Keras's session, as is done between models, clears the policy too.
        keras.config.set_dtype_policy(self.policy)
        model = self.build(self.input_shape, self.classes)
        model.compile(
            optimizer=keras.optimizers.Adam(),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        return model

    def samples(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels of a few batches, the same for the same seed."""
        random = np.random.default_rng(seed)
        count = self.batch_size * _BATCHES
        shape = (count, *self.input_shape)
        if self.vocabulary:
            inputs = random.integers(0, self.vocabulary, shape, dtype=np.int32)
        else:
            inputs = random.random(shape, dtype=np.float32) * np.float32(self.input_high)
        labels = random.integers(0, self.classes, (count, *self.label_shape), dtype=np.int32)
        return inputs, labels

    def dataset(self, seed: int = 0) -> tf.data.Dataset:
        """Batches without end.

        Slicing and batching happen once, and batches wait in a GPU's memory where there is
        one, so that the benchmark times steps and not the input; the batch size in
        `element_spec` is None, as it is in `fit`.
        """
        samples = tf.data.Dataset.from_tensor_slices(self.samples(seed))
        batches = samples.batch(self.batch_size).cache().repeat()
        if not tf.config.list_physical_devices("GPU"):
            return batches.prefetch(2)
        return batches.apply(tf.data.experimental.prefetch_to_device("/GPU:0", _BATCHES))


def _resnet50(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    return keras.applications.ResNet50(weights=None, input_shape=input_shape, classes=classes)


def _mobilenet_v2(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    return keras.applications.MobileNetV2(weights=None, input_shape=input_shape, classes=classes)


def _efficientnet_b0(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    return keras.applications.EfficientNetB0(weights=None, input_shape=input_shape, classes=classes)


def _cnn(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    layers: list[keras.layers.Layer] = [keras.Input(input_shape)]
    for filters in (32, 64, 128):
        layers.append(keras.layers.Conv2D(filters, 3, padding="same", activation="relu"))
        layers.append(keras.layers.MaxPooling2D())
    layers.append(keras.layers.Flatten())
    layers.append(keras.layers.Dense(128, activation="relu"))
    layers.append(keras.layers.Dense(classes, activation="softmax"))
    return keras.Sequential(layers, name="cnn")


def _speech_cnn(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    """Keyword spotting on spectrograms, the network of TensorFlow's tutorial.

    Source: https://www.tensorflow.org/tutorials/audio/simple_audio
    """
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Conv2D(64, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Dropout(0.25),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(classes, activation="softmax"),
        ],
        name="speech_cnn",
    )


def _conv_lstm(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Conv1D(64, 5, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.LSTM(128, return_sequences=True),
            keras.layers.LSTM(128),
            keras.layers.Dense(classes, activation="softmax"),
        ],
        name="conv_lstm",
    )


def _mlp(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Dense(1024, activation="relu"),
            keras.layers.Dense(1024, activation="relu"),
            keras.layers.Dense(classes, activation="softmax"),
        ],
        name="mlp",
    )


class _Positions(keras.layers.Layer):
    """Adds a learned vector to each position."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.vectors = self.add_weight(
            shape=input_shape[1:], initializer=keras.initializers.RandomNormal(stddev=0.02)
        )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs + keras.ops.cast(self.vectors, inputs.dtype)


_VOCABULARY = 8192


def _transformer(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    """A pre-norm encoder: 4 layers of 256 with 8 heads, mean over tokens, softmax."""
    width, heads, depth = 256, 8, 4
    tokens = keras.Input(input_shape, dtype="int32")
    x = _Positions()(keras.layers.Embedding(_VOCABULARY, width)(tokens))
    for _ in range(depth):
        y = keras.layers.LayerNormalization()(x)
        y = keras.layers.MultiHeadAttention(heads, width // heads)(y, y)
        x = keras.layers.Add()([x, y])
        y = keras.layers.LayerNormalization()(x)
        y = keras.layers.Dense(4 * width, activation="gelu")(y)
        y = keras.layers.Dense(width)(y)
        x = keras.layers.Add()([x, y])
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    outputs = keras.layers.Dense(classes, activation="softmax")(x)
    return keras.Model(tokens, outputs, name="transformer")


def _lstm(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.LSTM(64, return_sequences=True),
            keras.layers.LSTM(64),
            keras.layers.Dense(classes, activation="softmax"),
        ],
        name="lstm",
    )


def _unet_1d(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    """Three levels of convolutions over a signal, and back; a class for the whole signal."""
    x = inputs = keras.Input(input_shape)
    skips = []
    for filters in (32, 64, 128):
        x = keras.layers.Conv1D(filters, 9, padding="same", use_bias=False)(x)
        x = keras.layers.Activation("swish")(keras.layers.BatchNormalization()(x))
        skips.append(x)
        x = keras.layers.MaxPooling1D(4)(x)
    for filters, skip in zip((128, 64, 32), reversed(skips), strict=True):
        x = keras.layers.Conv1DTranspose(filters, 4, strides=4, padding="same")(x)
        x = keras.layers.Concatenate()([x, skip])
        x = keras.layers.Conv1D(filters, 9, padding="same", activation="relu")(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(classes, activation="softmax")(x), name="unet_1d")


def _unet(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    """Segmentation: a class for every pixel."""
    x = inputs = keras.Input(input_shape)
    skips = []
    for filters in (16, 32, 64):
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        skips.append(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Conv2D(128, 3, padding="same", activation="relu")(x)
    for filters, skip in zip((64, 32, 16), reversed(skips), strict=True):
        x = keras.layers.Conv2DTranspose(filters, 2, strides=2)(x)
        x = keras.layers.Concatenate()([x, skip])
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
    outputs = keras.layers.Conv2D(classes, 1, activation="softmax")(x)
    return keras.Model(inputs, outputs, name="unet")


def _gru_tagger(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    """A class for every token."""
    tokens = keras.Input(input_shape, dtype="int32")
    x = keras.layers.Embedding(_VOCABULARY, 64)(tokens)
    x = keras.layers.Bidirectional(keras.layers.GRU(64, return_sequences=True))(x)
    return keras.Model(
        tokens, keras.layers.Dense(classes, activation="softmax")(x), name="gru_tagger"
    )


def _vit_tiny(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    """A vision transformer of 4 layers of 192 with 3 heads, on patches of 4x4."""
    return _vit("vit_tiny", input_shape, classes, width=192, heads=3, depth=4, patch=4)


def _vit_small(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    """ViT-S/16: 12 layers of 384 with 6 heads, on patches of 16x16.

    Source: https://arxiv.org/abs/2106.10270, table 2
    """
    return _vit("vit_small", input_shape, classes, width=384, heads=6, depth=12, patch=16)


def _vit(
    name: str,
    input_shape: tuple[int, ...],
    classes: int,
    *,
    width: int,
    heads: int,
    depth: int,
    patch: int,
) -> keras.Model:
    inputs = keras.Input(input_shape)
    x = keras.layers.Conv2D(width, patch, strides=patch)(inputs)
    x = _Positions()(keras.layers.Reshape((-1, width))(x))
    for _ in range(depth):
        y = keras.layers.LayerNormalization()(x)
        x = keras.layers.Add()([x, keras.layers.MultiHeadAttention(heads, width // heads)(y, y)])
        y = keras.layers.LayerNormalization()(x)
        y = keras.layers.Dense(4 * width, activation="gelu")(y)
        x = keras.layers.Add()([x, keras.layers.Dense(width)(y)])
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    return keras.Model(inputs, keras.layers.Dense(classes, activation="softmax")(x), name=name)


_ROWS = 200_000


def _embedding(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    """A recommender: a table of users, one of items, and a small network that rates the pair."""
    ids = keras.Input(input_shape, dtype="int32")
    vectors = [keras.layers.Embedding(_ROWS, 32)(ids[:, place]) for place in range(2)]
    x = keras.layers.Dense(64, activation="relu")(keras.layers.Concatenate()(vectors))
    return keras.Model(ids, keras.layers.Dense(classes, activation="softmax")(x), name="embedding")


MODELS: tuple[Benchmark, ...] = (
    Benchmark("resnet50", _resnet50, 32, (64, 64, 3)),
    Benchmark("mobilenet_v2", _mobilenet_v2, 32, (96, 96, 3)),
    # It rescales 0..255 itself. On 0..1 it would see a constant in 8 bits of mantissa.
    Benchmark("efficientnet_b0", _efficientnet_b0, 16, (96, 96, 3), input_high=255.0),
    Benchmark("cnn", _cnn, 128, (32, 32, 3)),
    Benchmark("speech_cnn", _speech_cnn, 64, (98, 40, 1), classes=12),
    Benchmark("conv_lstm", _conv_lstm, 64, (98, 40), classes=12),
    Benchmark("mlp", _mlp, 128, (784,)),
    Benchmark("transformer", _transformer, 32, (128,), vocabulary=_VOCABULARY),
    Benchmark("lstm", _lstm, 64, (60, 16)),
    Benchmark("unet_1d", _unet_1d, 16, (2048, 4)),
    Benchmark("unet", _unet, 16, (64, 64, 3), label_shape=(64, 64)),
    Benchmark("gru_tagger", _gru_tagger, 32, (64,), vocabulary=_VOCABULARY, label_shape=(64,)),
    Benchmark("vit_tiny", _vit_tiny, 64, (32, 32, 3)),
    Benchmark("embedding", _embedding, 256, (2,), classes=5, vocabulary=_ROWS),
)


def _larger(name: str, batch_size: int, input_shape: tuple[int, ...], **more: Any) -> Benchmark:
    small = next(model for model in MODELS if model.name == name)
    return dataclasses.replace(small, batch_size=batch_size, input_shape=input_shape, **more)


# The sizes at which a GPU is busy with products, and not with launching them.
GPU_MODELS: tuple[Benchmark, ...] = (
    _larger("resnet50", 256, (224, 224, 3)),
    _larger("transformer", 256, (512,)),
    Benchmark("vit_small", _vit_small, 128, (224, 224, 3)),
    _larger("efficientnet_b0", 128, (224, 224, 3)),
    _larger("mobilenet_v2", 256, (224, 224, 3)),
    _larger("lstm", 512, (200, 64)),
    _larger("speech_cnn", 1024, (98, 40, 1)),
    _larger("unet", 64, (256, 256, 3), label_shape=(256, 256)),
)


def chosen(names: list[str] | None, sizes: str = "cpu") -> tuple[Benchmark, ...]:
    """The models called `names`, in the order of their table; all of them without names.

    Args:
        names: of models.
        sizes: `"cpu"` or `"gpu"`, which have a table each.
    """
    table = GPU_MODELS if sizes == "gpu" else MODELS
    return tuple(model for model in table if not names or model.name in names)
