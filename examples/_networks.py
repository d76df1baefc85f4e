"""The networks of the examples."""

import itertools

import keras


def cnn(image_shape: tuple[int, ...], classes: int) -> keras.Model:
    """Three convolutions with pooling, and two dense layers."""
    layers: list[keras.layers.Layer] = [keras.Input(image_shape)]
    for filters in (32, 64, 128):
        layers.append(keras.layers.Conv2D(filters, 3, padding="same", activation="relu"))
        layers.append(keras.layers.MaxPooling2D())
    layers.append(keras.layers.Flatten())
    layers.append(keras.layers.Dense(128, activation="relu"))
    layers.append(keras.layers.Dense(classes, activation="softmax"))
    return keras.Sequential(layers, name="cnn")


def _convolved(x, filters: int, size: int, strides: int):
    """A convolution and its normalisation."""
    convolution = keras.layers.Conv2D(
        filters, size, strides, "same", use_bias=False, kernel_initializer="he_normal"
    )
    # Averages over ten steps and not over a hundred: these trainings are short.
    return keras.layers.BatchNormalization(momentum=0.9)(convolution(x))


def resnet(image_shape: tuple[int, ...], classes: int, depth: int) -> keras.Model:
    """The ResNet that its authors trained on CIFAR-10 (https://arxiv.org/abs/1512.03385, 4.2)."""
    inputs = keras.Input(image_shape)
    x = keras.layers.ReLU()(_convolved(inputs, 16, 3, 1))
    for filters, block in itertools.product((16, 32, 64), range((depth - 2) // 6)):
        strides = 2 if filters > 16 and block == 0 else 1
        shortcut = x if strides == 1 else _convolved(x, filters, 1, strides)
        x = keras.layers.ReLU()(_convolved(x, filters, 3, strides))
        x = keras.layers.ReLU()(keras.layers.Add()([_convolved(x, filters, 3, 1), shortcut]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(classes, activation="softmax")(x)
    return keras.Model(inputs, outputs, name=f"resnet{depth}")


def speech_cnn(input_shape: tuple[int, int, int], classes: int) -> keras.Model:
    """Two convolutions and two dense layers with dropout, on spectrograms.

    Source: https://www.tensorflow.org/tutorials/audio/simple_audio, with a pooling after
    the first convolution too.
    """
    layers: list[keras.layers.Layer] = [keras.Input(input_shape)]
    for filters in (32, 64):
        layers.append(keras.layers.Conv2D(filters, 3, padding="same", activation="relu"))
        layers.append(keras.layers.MaxPooling2D())
    layers.append(keras.layers.Dropout(0.25))
    layers.append(keras.layers.Flatten())
    layers.append(keras.layers.Dense(128, activation="relu"))
    layers.append(keras.layers.Dropout(0.5))
    layers.append(keras.layers.Dense(classes, activation="softmax"))
    return keras.Sequential(layers, name="speech_cnn")


def speech_recurrent(
    input_shape: tuple[int, int, int], classes: int, cell: type[keras.layers.Layer]
) -> keras.Model:
    """A convolution over time and two recurrent layers, on spectrograms.

    Args:
        input_shape: frames, bands and 1.
        classes: the number of words.
        cell: keras.layers.LSTM or keras.layers.GRU.
    """
    layers = [
        keras.Input(input_shape),
        keras.layers.Reshape(input_shape[:2]),
        keras.layers.Conv1D(64, 5, padding="same", use_bias=False),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.ReLU(),
        cell(96, return_sequences=True),
        keras.layers.Dropout(0.25),
        cell(96),
        keras.layers.Dropout(0.25),
        keras.layers.Dense(classes, activation="softmax"),
    ]
    return keras.Sequential(layers, name=f"speech_{cell.__name__.lower()}")


def text_transformer(length: int, classes: int) -> keras.Model:
    """Two blocks of attention over bytes, normalised before each part, and their mean."""
    inputs = keras.Input((length,), dtype="int32")
    places = keras.ops.arange(length)[None]
    x = keras.layers.Embedding(256, 64)(inputs) + keras.layers.Embedding(length, 64)(places)
    for _ in range(2):
        normed = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.MultiHeadAttention(4, 16)(normed, normed)
        hidden = keras.layers.Dense(256, "gelu")(keras.layers.LayerNormalization()(x))
        x = x + keras.layers.Dense(64)(hidden)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    outputs = keras.layers.Dense(classes, activation="softmax")(x)
    return keras.Model(inputs, outputs, name="transformer")
