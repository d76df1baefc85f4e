"""A DCGAN on small drawings of rings, in a training loop of its own."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

SIZE, NOISE, BATCH = 16, 16, 64

keras.utils.set_random_seed(6)
rng = np.random.default_rng(6)
radii = rng.uniform(3, 6, (1024, 1, 1))
rows, columns = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
rings = np.exp(-((np.hypot(rows, columns)[None] - radii) ** 2))
dataset = tf.data.Dataset.from_tensor_slices((2 * rings[..., None] - 1).astype("float32"))
dataset = dataset.shuffle(1024, seed=6).batch(BATCH, drop_remainder=True)

discriminator = keras.Sequential(
    [
        keras.Input((SIZE, SIZE, 1)),
        layers.Conv2D(16, 4, strides=2, padding="same"),
        layers.LeakyReLU(0.2),
        layers.Conv2D(32, 4, strides=2, padding="same"),
        layers.LeakyReLU(0.2),
        layers.Flatten(),
        layers.Dropout(0.2),
        layers.Dense(1),
    ],
    name="discriminator",
)
generator = keras.Sequential(
    [
        keras.Input((NOISE,)),
        layers.Dense(4 * 4 * 32, use_bias=False),
        layers.BatchNormalization(),
        layers.LeakyReLU(0.2),
        layers.Reshape((4, 4, 32)),
        layers.Conv2DTranspose(16, 4, strides=2, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.LeakyReLU(0.2),
        layers.Conv2DTranspose(1, 4, strides=2, padding="same", activation="tanh"),
    ],
    name="generator",
)
entropy = keras.losses.BinaryCrossentropy(from_logits=True)
generator_optimizer = keras.optimizers.Adam(1e-3, beta_1=0.5)
discriminator_optimizer = keras.optimizers.Adam(2e-4, beta_1=0.5)
noise_source = tf.random.Generator.from_seed(6)


@tf.function
def train_step(real):
    """One update of each of the two networks."""
    noise = noise_source.normal((BATCH, NOISE))
    with tf.GradientTape() as generator_tape, tf.GradientTape() as discriminator_tape:
        fake = generator(noise, training=True)
        judged_real = discriminator(real, training=True)
        judged_fake = discriminator(fake, training=True)
        generator_loss = entropy(tf.ones_like(judged_fake), judged_fake)
        real_loss = entropy(tf.ones_like(judged_real), judged_real)
        fake_loss = entropy(tf.zeros_like(judged_fake), judged_fake)
        discriminator_loss = real_loss + fake_loss
    for tape, loss, network, optimizer in (
        (generator_tape, generator_loss, generator, generator_optimizer),
        (discriminator_tape, discriminator_loss, discriminator, discriminator_optimizer),
    ):
        weights = network.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
    return tf.reduce_mean(tf.abs(tf.reduce_mean(fake, 0) - tf.reduce_mean(real, 0)))


distances = []
for _ in range(16):
    epoch = [float(train_step(batch)) for batch in dataset]
    distances.append(sum(epoch) / len(epoch))
print(*distances)
