"""Classification of short texts by a transformer: do they praise more than they blame?"""

import keras
import numpy as np
from keras import layers, ops

VOCABULARY, LENGTH, WIDTH = 40, 24, 32


class TransformerBlock(layers.Layer):
    """Attention and a feed-forward network, each with dropout, a way around it and a norm."""

    def __init__(self, heads=2, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(heads, WIDTH // heads)
        self.feed_forward = keras.Sequential(
            [layers.Dense(4 * WIDTH, activation="relu"), layers.Dense(WIDTH)]
        )
        self.norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]
        self.dropouts = [layers.Dropout(0.1) for _ in range(2)]

    def call(self, inputs, training=False):
        attended = self.dropouts[0](self.attention(inputs, inputs), training=training)
        middle = self.norms[0](inputs + attended)
        fed = self.dropouts[1](self.feed_forward(middle), training=training)
        return self.norms[1](middle + fed)


class TokenAndPosition(layers.Layer):
    """The sum of two embeddings."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.tokens = layers.Embedding(VOCABULARY, WIDTH)
        self.positions = layers.Embedding(LENGTH, WIDTH)

    def call(self, x):
        return self.tokens(x) + self.positions(ops.arange(ops.shape(x)[-1]))


def texts(count):
    """Words by chance, of which a few praise and a few blame; the label says which are more."""
    words = rng.integers(1, VOCABULARY, (count, LENGTH))
    praise = (words < 8).sum(axis=1) - ((words >= 8) & (words < 15)).sum(axis=1)
    # One in ten is labelled by chance, as people do.
    labels = np.where(rng.random(count) < 0.1, rng.integers(0, 2, count), praise > 0)
    return words, labels.astype("int32")


keras.utils.set_random_seed(5)
rng = np.random.default_rng(5)
train, test = texts(2048), texts(256)

inputs = keras.Input((LENGTH,), dtype="int32")
x = TransformerBlock()(TokenAndPosition()(inputs))
x = layers.Dropout(0.1)(layers.GlobalAveragePooling1D()(x))
x = layers.Dropout(0.1)(layers.Dense(20, activation="relu")(x))
model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(*train, batch_size=32, epochs=5, validation_data=test, verbose=0)
print(*history.history["loss"])
