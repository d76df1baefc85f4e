"""Small models of the usual kinds, to try tfaccel on without a model of one's own.

They are made for their kind of work, not for accuracy.
"""

from collections.abc import Callable, Mapping

import keras

layers = keras.layers

_VOCABULARY = 8192


def mlp(input_shape: tuple[int, ...] = (784,), classes: int = 10) -> keras.Model:
    """Two hidden layers of 1024."""
    hidden = [layers.Dense(1024, activation="relu") for _ in range(2)]
    head = layers.Dense(classes, activation="softmax")
    return keras.Sequential([keras.Input(input_shape), *hidden, head], name="mlp")


def cnn(input_shape: tuple[int, ...] = (32, 32, 3), classes: int = 10) -> keras.Model:
    """Three convolutions with pooling, and two dense layers."""
    body: list[keras.layers.Layer] = []
    for filters in (32, 64, 128):
        body.append(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        body.append(layers.MaxPooling2D())
    head = [layers.Dense(128, activation="relu"), layers.Dense(classes, activation="softmax")]
    return keras.Sequential([keras.Input(input_shape), *body, layers.Flatten(), *head], name="cnn")


def resnet8(input_shape: tuple[int, ...] = (32, 32, 3), classes: int = 10) -> keras.Model:
    """The smallest of the ResNets for CIFAR-10 (https://arxiv.org/abs/1512.03385, 4.2)."""

    def convolved(x, filters: int, size: int, strides: int):
        x = layers.Conv2D(filters, size, strides, "same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    inputs = keras.Input(input_shape)
    x = layers.ReLU()(convolved(inputs, 16, 3, 1))
    for filters in (16, 32, 64):
        strides = 1 if filters == 16 else 2
        shortcut = x if strides == 1 else convolved(x, filters, 1, strides)
        x = layers.ReLU()(convolved(x, filters, 3, strides))
        x = layers.ReLU()(layers.Add()([convolved(x, filters, 3, 1), shortcut]))
    outputs = layers.Dense(classes, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs, name="resnet8")


def lstm(input_shape: tuple[int, ...] = (98, 40), classes: int = 12) -> keras.Model:
    """Two LSTMs of 128 over a spectrogram."""
    recurrent = [layers.LSTM(128, return_sequences=True), layers.LSTM(128)]
    head = layers.Dense(classes, activation="softmax")
    return keras.Sequential([keras.Input(input_shape), *recurrent, head], name="lstm")


def transformer(input_shape: tuple[int, ...] = (128,), classes: int = 10) -> keras.Model:
    """Four pre-norm encoder layers of 256 with 8 heads over tokens, without positions."""
    width, heads = 256, 8
    tokens = keras.Input(input_shape, dtype="int32")
    x = layers.Embedding(_VOCABULARY, width)(tokens)
    for _ in range(4):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(heads, width // heads)(y, y)])
        y = layers.Dense(4 * width, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(width)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    outputs = layers.Dense(classes, activation="softmax")(x)
    return keras.Model(tokens, outputs, name="transformer")


REFERENCE_MODELS: Mapping[str, Callable[..., keras.Model]] = {
    make.__name__: make for make in (mlp, cnn, resnet8, lstm, transformer)
}
