"""A variational autoencoder with a `train_step` of its own, on points along a curve."""

import keras
import numpy as np
import tensorflow as tf

keras.utils.set_random_seed(2)
turns = np.random.default_rng(2).uniform(0, 6.3, (2048, 1))
points = np.concatenate([np.sin(turns * k) for k in range(1, 9)], axis=1).astype("float32")


class Autoencoder(keras.Model):
    """Two dense networks with noise between them."""

    def __init__(self):
        super().__init__()
        self.encoder = keras.Sequential([keras.layers.Dense(64, "relu"), keras.layers.Dense(4)])
        self.decoder = keras.Sequential([keras.layers.Dense(64, "relu"), keras.layers.Dense(8)])
        self.noise = keras.random.SeedGenerator(3)
        self.total = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.total]

    def train_step(self, data):
        with tf.GradientTape() as tape:
            mean, log_variance = tf.split(self.encoder(data), 2, axis=1)
            noise = keras.random.normal(tf.shape(mean), seed=self.noise)
            restored = self.decoder(mean + tf.exp(0.5 * log_variance) * noise)
            error = tf.reduce_mean(tf.reduce_sum(tf.square(data - restored), axis=1))
            divergence = tf.square(mean) + tf.exp(log_variance) - log_variance - 1
            loss = error + 0.05 * tf.reduce_mean(tf.reduce_sum(divergence, axis=1))
        weights = self.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self.total.update_state(loss)
        return {"loss": self.total.result()}


model = Autoencoder()
model.compile(keras.optimizers.Adam(2e-3))
history = model.fit(points, batch_size=64, epochs=12, verbose=0)
print(*history.history["loss"])
