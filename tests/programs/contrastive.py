"""Contrastive pairs: a network with two equal towers tells whether two drawings are of a kind."""

import keras
import numpy as np
from keras import layers, ops

SIZE, KINDS, MARGIN = 16, 6, 1.0


def contrastive_loss(same, distance):
    """Pairs of a kind are drawn together, others are pushed a margin apart."""
    same = ops.cast(same, distance.dtype)
    apart = ops.maximum(MARGIN - distance, 0)
    return ops.mean(same * ops.square(distance) + (1 - same) * ops.square(apart))


def distance(vectors):
    one, other = vectors
    squares = ops.sum(ops.square(one - other), axis=1, keepdims=True)
    return ops.sqrt(ops.maximum(squares, keras.config.epsilon()))


def drawings(kinds):
    """Waves of a direction for each kind, with phases by chance and noise."""
    angles = (kinds * np.pi / KINDS)[:, None, None]
    rows, columns = np.mgrid[:SIZE, :SIZE]
    phases = rng.uniform(0, 2 * np.pi, (len(kinds), 1, 1))
    waves = np.sin(1.2 * (rows * np.cos(angles) + columns * np.sin(angles)) + phases)
    return (waves + rng.normal(0, 0.3, waves.shape))[..., None].astype("float32")


keras.utils.set_random_seed(11)
rng = np.random.default_rng(11)
left = rng.integers(0, KINDS, 2048)
right = np.where(rng.random(2048) < 0.5, left, rng.integers(0, KINDS, 2048))
pairs, same = (drawings(left), drawings(right)), (left == right).astype("float32")[:, None]

x = tower_inputs = keras.Input((SIZE, SIZE, 1))
x = layers.Conv2D(8, 5, activation="tanh")(layers.BatchNormalization()(x))
x = layers.AveragePooling2D(2)(x)
x = layers.GlobalMaxPooling2D()(layers.Conv2D(16, 5, activation="tanh")(x))
x = layers.Dense(10, activation="tanh")(layers.BatchNormalization()(x))
tower = keras.Model(tower_inputs, x)
inputs = [keras.Input((SIZE, SIZE, 1)) for _ in range(2)]
merged = layers.Lambda(distance)([tower(one) for one in inputs])
model = keras.Model(inputs, merged)
model.compile(keras.optimizers.RMSprop(1e-3), contrastive_loss)
history = model.fit(list(pairs), same, batch_size=32, epochs=8, verbose=0)
print(*history.history["loss"])
