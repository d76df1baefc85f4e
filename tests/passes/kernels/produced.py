"""Models of products, and what a race of kernels would say of them."""

import keras
import numpy as np
import tensorflow as tf

from tfaccel.core.workload import Workload
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Speedup
from tfaccel.ops.kernels import Candidate, Ranking, kernels
from tfaccel.steps.snapshot import build_all

layers = keras.layers


def products(data_format="channels_last"):
    """One layer of every kind that is served."""
    shape = (9, 8, 4) if data_format == "channels_last" else (4, 9, 8)
    where = {"data_format": data_format}
    x = inputs = keras.Input(shape)
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="plain", **where)(x)
    x = layers.Conv2D(4, 1, strides=2, use_bias=False, name="one", **where)(x)
    x = layers.Conv2D(4, 3, padding="same", groups=2, name="grouped", **where)(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", name="deep", **where)(x)
    x = layers.SeparableConv2D(5, 2, activation="tanh", name="separable", **where)(x)
    x = layers.Reshape((-1, 5))(x)
    x = layers.Conv1D(6, 2, padding="causal", dilation_rate=2, name="causal")(x)
    x = layers.Dense(4, activation="gelu", name="each")(x)
    x = layers.Reshape((1, 1, -1, 4))(x)
    x = layers.Conv3D(3, 1, name="volume")(x)
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))
    model.compile("sgd", "mse")
    return model


def workload_of(model, batch=3, **arguments):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2 * batch, *model.input_shape[1:])).astype("float32")
    y = rng.normal(size=(2 * batch, *model.output_shape[1:])).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)
    build_all(model, data.element_spec)
    return Workload(model, (next(iter(data)),), data.element_spec, **arguments)


def ranked(spec, winner="tensorflow", gain=3.0):
    """A ranking in which one kernel won, if it serves."""
    rows = []
    for kernel in kernels(spec.op, spec.direction):
        if kernel.name == winner != "tensorflow" and kernel.unsupported(spec) is None:
            speedup = Speedup(gain, gain - 0.1, gain + 0.1, 6)
            rows.append(Candidate(kernel.name, Outcome.FASTER, 1e-3, speedup, 1e-7))
        elif kernel.name == "tensorflow":
            rows.append(Candidate(kernel.name, Outcome.BASELINE, 3e-3, Speedup()))
        else:
            rows.append(Candidate(kernel.name, Outcome.REFUSED, reason="not now"))
    return Ranking(spec, tuple(rows))
