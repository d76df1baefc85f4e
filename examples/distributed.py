"""Trains an image classifier on one device, on several, or on many machines.

    pip install 'tfaccel[examples]'
    python examples/distributed.py

That uses every device of this machine. With several processes, each gets its own
TF_CONFIG (or runs as a task of a Slurm step). Here they are two on one machine:

    python examples/distributed.py --local_workers 2

docs/distributed.md has the commands for Slurm, Kubernetes and Ray.
"""

import json
import os
import socket
import subprocess
import sys

import _datasets
import keras
import tensorflow as tf
from absl import app, flags

import tfaccel

_EPOCHS = flags.DEFINE_integer("epochs", 3, "epochs", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "images in a replica's batch", lower_bound=1)
_BACKUP = flags.DEFINE_string(
    "backup_dir", None, "where the chief keeps what a stopped training is resumed from"
)
_WORKERS = flags.DEFINE_integer(
    "local_workers", None, "start that many workers on this machine", lower_bound=1
)


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


def train() -> None:
    """One worker's part, which is the same program on every worker."""
    tf.get_logger().setLevel("WARNING")  # else it tells of every reduction
    strategy = tfaccel.AccelStrategy()  # before anything else uses TensorFlow
    images = _datasets.prepare("digits", _datasets.SOURCES["digits"]())
    with strategy.scope():
        model = build_model(images.train[0].shape[1:])
    callbacks = []
    if _BACKUP.value:
        callbacks.append(keras.callbacks.BackupAndRestore(strategy.backup_dir(_BACKUP.value)))
    if strategy.is_chief:
        print(strategy)
    model.fit(
        *images.train,
        batch_size=strategy.global_batch_size(_BATCH_SIZE.value),
        epochs=_EPOCHS.value,
        validation_data=images.validation,
        callbacks=callbacks,
        verbose=2 if strategy.is_chief else 0,
    )


def start_workers(count: int) -> int:
    """Starts this program `count` times, each time as another worker."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    hosts = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    command = [sys.executable, *sys.argv, "--local_workers=1"]
    workers = []
    for index in range(count):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": {"worker": hosts}, "task": task})
        workers.append(subprocess.Popen(command, env={**os.environ, "TF_CONFIG": config}))
    return max(abs(worker.wait()) for worker in workers)


def main(_: list[str]) -> int | None:
    """Trains, or starts workers that do."""
    if (_WORKERS.value or 1) > 1:
        return start_workers(_WORKERS.value)
    return train()


if __name__ == "__main__":
    app.run(main)
