"""Trains under Ray Train, which starts the workers and gives each its TF_CONFIG.

    pip install 'tfaccel[cpu,examples,ray]'
    python examples/ray_train.py

Without a cluster Ray starts one on this machine. Stock Keras 3 can't do this:
https://github.com/ray-project/ray/issues/47464
"""

import pathlib
import tempfile
from typing import Any

import _datasets
import keras
import ray.train
import tensorflow as tf
from absl import app, flags
from distributed import build_model
from ray.train.tensorflow import TensorflowTrainer

import tfaccel

_WORKERS = flags.DEFINE_integer("workers", 2, "processes that train together", lower_bound=1)
_GPUS = flags.DEFINE_bool("use_gpu", False, "give each worker a GPU")
_STORAGE = flags.DEFINE_string(
    "storage_path", None, "where Ray keeps results: shared, if there are several machines"
)


class Reporter(keras.callbacks.Callback):
    """Hands Ray every epoch's metrics, and the chief's weights."""

    def __init__(self, strategy: tfaccel.AccelStrategy):
        super().__init__()
        self._strategy = strategy

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Reports; Ray waits until all workers have."""
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self._strategy.is_chief:
                self.model.save_weights(pathlib.Path(folder, "model.weights.h5"))
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(dict(logs or {}), checkpoint=checkpoint)


def train(config: dict[str, Any]) -> None:
    """One worker's part.

    Args:
        config: `epochs`, and `batch_size` of a replica.
    """
    tf.get_logger().setLevel("WARNING")  # else it tells of every reduction
    strategy = tfaccel.AccelStrategy()  # before anything else uses TensorFlow
    images = _datasets.prepare("digits", _datasets.SOURCES["digits"]())
    with strategy.scope():
        model = build_model(images.train[0].shape[1:])
    model.fit(
        *images.train,
        batch_size=strategy.global_batch_size(config["batch_size"]),
        epochs=config["epochs"],
        validation_data=images.validation,
        callbacks=[Reporter(strategy)],
        verbose=0,
    )


def main(_: list[str]) -> None:
    """Runs the training and prints the last epoch's metrics."""
    trainer = TensorflowTrainer(
        train,
        train_loop_config={"epochs": 3, "batch_size": 64},
        scaling_config=ray.train.ScalingConfig(num_workers=_WORKERS.value, use_gpu=_GPUS.value),
        run_config=ray.train.RunConfig(storage_path=_STORAGE.value),
    )
    result = trainer.fit()
    print({name: round(value, 4) for name, value in result.metrics.items()})


if __name__ == "__main__":
    app.run(main)
