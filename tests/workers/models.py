"""Models and data that workers and their single-process references share."""

import keras
import numpy as np
import tensorflow as tf


def images(samples, seed=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, samples)
    x = rng.normal(size=(samples, 8, 8, 3)) + labels[:, None, None, None] * 0.5
    return x.astype("float32"), labels


def cnn(synchronized):
    """A CNN with BatchNormalization; the same initial weights each time."""
    keras.utils.set_random_seed(7)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3),
            layers.BatchNormalization(synchronized=synchronized, momentum=0.9),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, metrics=["accuracy"])
    return model


def mlp():
    """Quick to trace, with statistics and slots that a step updates."""
    keras.utils.set_random_seed(7)
    normal = keras.layers.BatchNormalization(momentum=0.9)
    body = [keras.layers.Flatten(), keras.layers.Dense(8), normal, keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *body])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, metrics=["accuracy"])
    return model


def two_inputs():
    """A model of a dictionary of inputs, with two outputs."""
    keras.utils.set_random_seed(7)
    left, right = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    both = keras.layers.Concatenate()([left, right])
    first = keras.layers.Dense(2, name="first")(both)
    second = keras.layers.Dense(1, name="second")(both)
    model = keras.Model({"left": left, "right": right}, {"first": first, "second": second})
    losses = {"first": "mse", "second": "mae"}
    model.compile("adam", losses, metrics={"first": ["mae"], "second": ["mse"]})
    return model


def two_inputs_data(samples):
    rng = np.random.default_rng(5)
    x = {"left": rng.random((samples, 4), "float32"), "right": rng.random((samples, 3), "float32")}
    y = {"first": x["left"][:, :2], "second": x["right"][:, :1]}
    return x, y


def train_cnn(model, batch_size=32):
    """Three epochs with validation, on global batches in a fixed order."""
    x, y = images(75) if batch_size == 15 else images(80)
    validation = images(41, seed=4)
    history = model.fit(
        x, y, batch_size=batch_size, epochs=3, shuffle=False, verbose=0, validation_data=validation
    )
    return history.history


def train_two_inputs(model):
    x, y = two_inputs_data(48)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    return model.fit(dataset, epochs=2, verbose=0, validation_data=dataset).history
