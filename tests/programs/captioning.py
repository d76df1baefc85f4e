"""Captions of small images: a frozen convolution, a transformer, and a `train_step` of its own."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

SIZE, WIDTH, LENGTH = 16, 32, 6
PAD, START, END = 0, 1, 2
# "a bright square on the left", as numbers of words: shade, shape, side.
SHADES, SHAPES, SIDES = (3, 4), (5, 6, 7), (8, 9)
WORDS = 10


def drawing(shade, shape, side):
    """A square, a bar or a frame, in the left or the right half."""
    image = rng.normal(0, 0.05, (SIZE, SIZE))
    at = 1 + 8 * side
    patch = np.full((6, 6), 0.4 + 0.6 * shade)
    if shape == 1:
        patch[:, 2:] = 0
    elif shape == 2:
        patch[1:-1, 1:-1] = 0
    image[5:11, at : at + 6] += patch
    return image[..., None]


class Captioner(keras.Model):
    """An encoder of images and a decoder of words; losses count words that are no padding."""

    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.accuracy_tracker = keras.metrics.Mean(name="accuracy")

    @property
    def metrics(self):
        return [self.loss_tracker, self.accuracy_tracker]

    def call(self, inputs, training=False):
        images, words = inputs
        return self.decoder([self.encoder(images), words], training=training)

    def score(self, images, captions, training):
        words, expected = captions[:, :-1], captions[:, 1:]
        predicted = self((images, words), training=training)
        mask = tf.cast(expected != PAD, tf.float32)
        losses = keras.losses.sparse_categorical_crossentropy(expected, predicted, from_logits=True)
        hits = tf.cast(tf.argmax(predicted, -1, tf.int32) == expected, tf.float32)
        return (tf.reduce_sum(found * mask) / tf.reduce_sum(mask) for found in (losses, hits))

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss, accuracy = self.score(*data, training=True)
        weights = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self.loss_tracker.update_state(loss)
        self.accuracy_tracker.update_state(accuracy)
        return {metric.name: metric.result() for metric in self.metrics}

    def test_step(self, data):
        loss, accuracy = self.score(*data, training=False)
        self.loss_tracker.update_state(loss)
        self.accuracy_tracker.update_state(accuracy)
        return {metric.name: metric.result() for metric in self.metrics}


keras.utils.set_random_seed(10)
rng = np.random.default_rng(10)
drawn = rng.integers(0, (2, 3, 2), (1024, 3))
images = np.stack([drawing(*kinds) for kinds in drawn]).astype("float32")
named = [(SHADES[shade], SHAPES[shape], SIDES[side]) for shade, shape, side in drawn]
# Dark things go without their shade, so that captions differ in length.
captions = [[START, *(name if name[0] == SHADES[1] else name[1:]), END] for name in named]
captions = np.array([caption + [PAD] * (LENGTH - len(caption)) for caption in captions], "int32")

encoder = keras.Sequential(
    [
        keras.Input((SIZE, SIZE, 1)),
        layers.Conv2D(32, 4, strides=4, activation="relu", trainable=False),
        layers.Reshape((16, 32)),
        layers.Dense(WIDTH, activation="relu"),
        layers.LayerNormalization(),
    ]
)
image_inputs, words = keras.Input((16, WIDTH)), keras.Input((LENGTH - 1,), dtype="int32")
places = layers.Embedding(LENGTH, WIDTH)(tf.range(LENGTH - 1)[None])
x = layers.Embedding(WORDS, WIDTH)(words) + places
attended = layers.MultiHeadAttention(2, WIDTH // 2)(x, x, use_causal_mask=True)
x = layers.LayerNormalization()(x + attended)
x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, WIDTH // 2)(x, image_inputs))
fed = layers.Dropout(0.1)(layers.Dense(WIDTH)(layers.Dense(64, activation="relu")(x)))
outputs = layers.Dense(WORDS)(layers.LayerNormalization()(x + fed))
decoder = keras.Model([image_inputs, words], outputs)

model = Captioner(encoder, decoder)
model.compile(keras.optimizers.Adam(1e-3))
data = tf.data.Dataset.from_tensor_slices((images, captions))
train = data.take(896).shuffle(896, seed=10).batch(32).prefetch(tf.data.AUTOTUNE)
history = model.fit(train, epochs=12, validation_data=data.skip(896).batch(32), verbose=0)
print(*history.history["loss"])
