"""A training loop of one's own with tfaccel: a GAN with two models and two optimizers.

It learns to draw discs of 16 x 16 pixels, which it makes itself, and takes a minute:

    pip install 'tfaccel[cpu]'
    python examples/custom_loop.py

Two lines are tfaccel's: the one that makes `step`, and the one that prints the report.
"""

import sys
from collections.abc import Callable

import _picture
import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from keras import layers

import tfaccel

_STEPS = flags.DEFINE_integer("steps", 2000, "batches to train on", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", 64, "images in a batch", lower_bound=1)
_SIZE = 16  # pixels
_NOISE = 32  # numbers that an image is drawn from


def discs(count: int, seed: int = 0) -> np.ndarray:
    """Images `(count, 16, 16, 1)` of a bright disc each, at some place and of some size."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(5, _SIZE - 5, size=(2, count, 1, 1))
    radius = rng.uniform(2, 4, size=(count, 1, 1))
    rows, columns = np.mgrid[:_SIZE, :_SIZE]
    away = np.hypot(rows - x, columns - y)
    return np.clip(radius - away, 0, 1)[..., None].astype("float32")


def make_generator() -> keras.Model:
    """Draws images from noise."""
    return keras.Sequential(
        [
            keras.Input((_NOISE,)),
            layers.Dense(4 * 4 * 64),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Reshape((4, 4, 64)),
            layers.Conv2DTranspose(32, 4, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2DTranspose(1, 4, strides=2, padding="same", activation="sigmoid"),
        ],
        name="generator",
    )


def make_critic() -> keras.Model:
    """Tells real images from drawn ones, by one number."""
    return keras.Sequential(
        [
            keras.Input((_SIZE, _SIZE, 1)),
            layers.Conv2D(32, 4, strides=2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.Conv2D(64, 4, strides=2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.Flatten(),
            layers.Dense(1),
        ],
        name="critic",
    )


def make_step(
    generator: keras.Model, critic: keras.Model, optimizers: list[keras.optimizers.Optimizer]
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """The step as it is without tfaccel: trains both models on a batch of real images."""
    seed = keras.random.SeedGenerator(1)  # put back after a check, other than tf.random's

    @tf.function
    def train_step(real: tf.Tensor) -> dict[str, tf.Tensor]:
        noise = keras.random.normal((tf.shape(real)[0], _NOISE), seed=seed)
        with tf.GradientTape() as drawing, tf.GradientTape() as telling:
            drawn = generator(noise, training=True)
            right, wrong = critic(real, training=True), critic(drawn, training=True)
            critic_loss = tf.reduce_mean(tf.nn.softplus(-right) + tf.nn.softplus(wrong))
            generator_loss = tf.reduce_mean(tf.nn.softplus(-wrong))
        weights = generator.trainable_variables
        optimizers[0].apply(drawing.gradient(generator_loss, weights), weights)
        weights = critic.trainable_variables
        optimizers[1].apply(telling.gradient(critic_loss, weights), weights)
        return {"generator_loss": generator_loss, "critic_loss": critic_loss}

    return train_step


def train(steps: int, batch_size: int) -> keras.Model:
    """The trained generator."""
    keras.utils.set_random_seed(0)
    generator, critic = make_generator(), make_critic()
    optimizers = [keras.optimizers.Adam(2e-4, beta_1=0.5) for _ in range(2)]
    images = tf.data.Dataset.from_tensor_slices(discs(4096)).repeat().shuffle(4096, seed=0)
    step = tfaccel.accelerate_step(
        make_step(generator, critic, optimizers),
        model=[generator, critic],
        optimizer=optimizers,
        steps=steps,
    )
    curves: dict[str, list[float]] = {"generator_loss": [], "critic_loss": []}
    for index, real in enumerate(images.batch(batch_size, drop_remainder=True).take(steps), 1):
        losses = step(real)
        if index % 200 == 0 or index == steps:
            print(index, *(f"{name} {float(loss):.3f}" for name, loss in losses.items()))
            for name, loss in losses.items():
                curves[name].append(float(loss))
    print(step.report.summary())
    _picture.show(curves, step.report, "discs.png", along="steps, in units of 200")
    return generator


def main(argv: list[str]) -> None:
    """Trains, and prints an image in letters."""
    if len(argv) > 1:
        sys.exit(f"There are flags only, no other arguments. Received: {' '.join(argv[1:])}")
    generator = train(_STEPS.value, _IMAGES.value)
    image = generator.predict_on_batch(keras.random.normal((1, _NOISE), seed=2))[0, ..., 0]
    print("\n".join("".join(" .:*#"[round(4 * float(pixel))] for pixel in row) for row in image))


if __name__ == "__main__":
    app.run(main)
