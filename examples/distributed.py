"""Trains an image classifier on one device, on several, or on many machines.

    pip install 'tfaccel[examples]'
    python examples/distributed.py

That uses every device of this machine. As two workers on it:

    tfaccel run --workers 2 examples/distributed.py

docs/distributed.md has many machines, restarts, Slurm, Kubernetes and Ray.
"""

import _datasets
import keras
import tensorflow as tf
from absl import app, flags

import tfaccel

_EPOCHS = flags.DEFINE_integer("epochs", 3, "epochs", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "images in a replica's batch", lower_bound=1)


def build_model(image_shape: tuple[int, ...]) -> keras.Model:
    """A small CNN; its statistics are those of the whole batch, over all replicas."""
    layers = [keras.Input(image_shape)]
    for filters in (32, 64):
        layers.append(keras.layers.Conv2D(filters, 3, padding="same", use_bias=False))
        layers.append(keras.layers.BatchNormalization(synchronized=True, momentum=0.9))
        layers.append(keras.layers.ReLU())
        layers.append(keras.layers.MaxPooling2D())
    layers += [keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    model = keras.Sequential(layers)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main(_: list[str]) -> None:
    """One worker's part, which is the same program on every worker."""
    tf.get_logger().setLevel("WARNING")  # else it tells of every reduction
    strategy = tfaccel.AccelStrategy()  # before anything else uses TensorFlow
    images = _datasets.prepare("digits", _datasets.SOURCES["digits"]())
    with strategy.scope():
        model = build_model(images.train[0].shape[1:])
    if strategy.is_chief:
        print(strategy)
    model.fit(
        *images.train,
        batch_size=strategy.global_batch_size(_BATCH_SIZE.value),
        epochs=_EPOCHS.value,
        validation_data=images.validation,
        verbose=2 if strategy.is_chief else 0,
    )


if __name__ == "__main__":
    app.run(main)
