"""Whether TensorFlow computes on this machine's GPU, and how fast: one check after another.

    python benchmarks/gpu_bring_up.py

Each check is by itself: one that fails says why, and the next goes on. What a check finds is
written at once.
"""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import _common
import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from tfaccel.system.device import current_device

_SIZE = flags.DEFINE_integer("size", 8192, "rows and columns of a matrix product", lower_bound=16)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "images in a batch", lower_bound=2)
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")

# Products in a call, so that launching one is a small part.
_PRODUCTS = 10
# Calls that are not timed, and calls that are.
_WARM, _TIMED = 2, 5
_PIXELS, _CHANNELS = 56, 64


def _seconds(call: Callable[[], Any]) -> float:
    """What a call takes, by the least of some."""
    taken = []
    for _ in range(_WARM + _TIMED):
        start = time.perf_counter()
        for tensor in tf.nest.flatten(call()):
            tensor.numpy()
        taken.append(time.perf_counter() - start)
    return min(taken[_WARM:])


def _product(dtype: str, tensor_float_32: bool = False) -> str:
    tf.config.experimental.enable_tensor_float_32_execution(tensor_float_32)
    size = _SIZE.value
    matrix = tf.cast(tf.random.normal((size, size)) / size**0.5, dtype)

    @tf.function(jit_compile=False)
    def products() -> tf.Tensor:
        result = matrix
        for _ in range(_PRODUCTS):
            result = tf.matmul(result, matrix)
        return tf.reduce_sum(result)

    seconds = _seconds(products)
    tf.config.experimental.enable_tensor_float_32_execution(True)
    return f"{2 * size**3 * _PRODUCTS / seconds / 1e12:.1f} TFLOP/s"


def _convolution(dtype: str, jit_compile: bool = False) -> str:
    shape = (_BATCH_SIZE.value, _PIXELS, _PIXELS, _CHANNELS)
    images = tf.cast(tf.random.normal(shape), dtype)
    weights = tf.Variable(tf.cast(tf.random.normal((3, 3, _CHANNELS, _CHANNELS)), dtype))

    @tf.function(jit_compile=jit_compile)
    def gradients() -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(images)
            total = tf.reduce_sum(tf.nn.conv2d(images, weights, 1, "SAME"))
        by_images, by_weights = tape.gradient(total, (images, weights))
        return tf.reduce_sum(by_images), tf.reduce_sum(by_weights)

    seconds = _seconds(gradients)
    flops = 3 * 2 * 9 * _BATCH_SIZE.value * _PIXELS**2 * _CHANNELS**2
    return f"{flops / seconds / 1e12:.1f} TFLOP/s"


def _fit(layer: keras.layers.Layer, policy: str = "float32") -> str:
    """Ten steps of a small model on noise: the loss falls, and says what a step takes."""
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential([keras.Input((64, 32)), layer, keras.layers.Dense(1)])
    keras.config.set_dtype_policy("float32")
    model.compile("adam", "mse")
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 64, 32)).astype("float32")
    losses = model.fit(x, x[:, 0, :1], epochs=10, verbose=0).history["loss"]
    if not losses[-1] < losses[0]:
        raise RuntimeError(f"the loss did not fall: {losses}")
    compiled = "by XLA" if model.jit_compile else "without XLA"
    return f"loss {losses[0]:.3f} to {losses[-1]:.3f}, {compiled}"


def _recurrent(name: str) -> str:
    return _fit(getattr(keras.layers, name)(64))


def _device() -> str:
    device = current_device()
    memory = ""
    if device.kind == "GPU":
        memory = f", {tf.config.experimental.get_memory_info('GPU:0')}"
    return f"{device.kind} {device.name}, compute capability {device.compute_capability}{memory}"


CHECKS: dict[str, Callable[[], str]] = {
    "device": _device,
    "product, float32": lambda: _product("float32"),
    "product, TensorFloat-32": lambda: _product("float32", tensor_float_32=True),
    "product, bfloat16": lambda: _product("bfloat16"),
    "product, float16": lambda: _product("float16"),
    "convolution, TensorFloat-32": lambda: _convolution("float32"),
    "convolution, bfloat16": lambda: _convolution("bfloat16"),
    "convolution, bfloat16 by XLA": lambda: _convolution("bfloat16", jit_compile=True),
    "fit of Dense": lambda: _fit(keras.layers.Flatten()),
    "fit of Conv1D in mixed_bfloat16": lambda: _fit(
        keras.layers.Conv1D(32, 64), policy="mixed_bfloat16"
    ),
    "fit of LSTM": lambda: _recurrent("LSTM"),
    "fit of GRU": lambda: _recurrent("GRU"),
}
COLUMNS = (
    _common.Column("check", lambda row: row["model"], is_number=False),
    _common.Column("found", lambda row: row.get("error") or f"{row['found']}", is_number=False),
    _common.Column("s", lambda row: f"{row.get('seconds', 0):.1f}"),
)


class _Check:
    """One of `CHECKS`, as `measure_each` takes it."""

    def __init__(self, name: str):
        self.name = name

    def run(self) -> dict[str, Any]:
        """What it found, and what it took."""
        start = time.perf_counter()
        return {"found": CHECKS[self.name](), "seconds": time.perf_counter() - start}


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    title = "What TensorFlow computes on this device"
    results = _common.Results("bring-up", title, COLUMNS, pathlib.Path(_OUTPUT.value))
    _common.measure_each(results, map(_Check, CHECKS), _Check.run)


if __name__ == "__main__":
    app.run(main)
