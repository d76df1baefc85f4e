"""Segmentation by a small U-Net: which pixels belong to a disc, under noise."""

import keras
import numpy as np
from keras import layers

SIZE = 32


def drawings(count):
    """Discs of several sizes and places, and their pixels."""
    centers = rng.uniform(8, 24, (2, count, 1, 1))
    radii = rng.uniform(4, 9, (count, 1, 1))
    rows, columns = np.mgrid[:SIZE, :SIZE]
    masks = np.hypot(rows - centers[0], columns - centers[1]) < radii
    images = masks + rng.normal(0, 0.5, masks.shape)
    return images[..., None].astype("float32"), masks[..., None].astype("int32")


def block(x, filters):
    for _ in range(2):
        x = layers.SeparableConv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.Activation("relu")(layers.BatchNormalization()(x))
    return x


keras.utils.set_random_seed(9)
rng = np.random.default_rng(9)
train, test = drawings(256), drawings(32)

inputs = keras.Input((SIZE, SIZE, 1))
x, skipped = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs), []
for filters in (8, 16):
    x = block(x, filters)
    skipped.append(x)
    x = layers.MaxPooling2D()(x)
x = block(x, 32)
for filters in (16, 8):
    x = layers.Conv2DTranspose(filters, 3, strides=2, padding="same")(x)
    x = block(layers.Concatenate()([x, skipped.pop()]), filters)
model = keras.Model(inputs, layers.Conv2D(2, 1, activation="softmax")(x))
model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
history = model.fit(*train, batch_size=16, epochs=6, validation_data=test, verbose=0)
print(*history.history["loss"])
