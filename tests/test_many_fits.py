"""Many fits in one process leave no more behind than Keras's own; a long one keeps nothing."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from early import built_early
from workers import many_fits

import tfaccel
from tfaccel.compat import tensorflow_private
from tfaccel.profiling.growth import trend

PROGRAM = pathlib.Path(many_fits.__file__)
# In a process of its own, which is read at 20 moments.
FITS, STEPS = 200, 200_000
# An allocator's own: less than a tenth of what a model that is never freed takes here.
BYTES_A_FIT = 2**17
BYTES_IN_ALL = 24 * 2**20


def grown(readings, key, warm_up=0.25):
    """What was added after the warm-up."""
    begin = readings[int(warm_up * len(readings))]
    return readings[-1][key] - begin[key]


@pytest.mark.parametrize("kind", ["new", "same", pytest.param("cleared", marks=pytest.mark.slow)])
def test_a_few_fits_leave_no_more_behind_than_keras_s_own(kind, tmp_path):
    ours = many_fits.many(kind, True, 6, str(tmp_path), every=2)
    keras_s = many_fits.many(kind, False, 4, str(tmp_path), every=2)
    a_fit = (keras_s[1]["graphs"] - keras_s[0]["graphs"]) / 2
    assert grown(ours, "graphs") <= a_fit * 5  # in four fits after the warm-up
    for key in ("threads", "files", "models"):
        assert grown(ours, key) <= 0, key
    assert ours[-1]["models"] <= 1  # that of the last fit


def read(kind, side, count):
    """The readings of a process."""
    root = PROGRAM.parents[2]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), kind, side, str(count)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def slope(readings):
    """Bytes a fit, or a step, after the warm-up."""
    return trend([r["after"] for r in readings], [r["bytes"] for r in readings]).bytes_per_step


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["new", "same", "cleared"])
def test_two_hundred_fits_leave_no_more_behind_than_keras_s_own(kind):
    ours, keras_s = (read(kind, side, FITS) for side in ("accelerated", "stock"))
    assert slope(ours) <= max(0.0, slope(keras_s)) + BYTES_A_FIT
    assert grown(ours, "graphs") <= grown(keras_s, "graphs")
    assert grown(ours, "objects") <= grown(keras_s, "objects") + FITS
    for key in ("threads", "tasks", "files", "models"):
        assert grown(ours, key) <= max(0, grown(keras_s, key)) + (key == "tasks"), key


@pytest.mark.slow
def test_a_long_fit_keeps_nothing():
    ours = read("long", "accelerated", STEPS)
    assert grown(ours, "bytes") <= BYTES_IN_ALL  # the times of 200,000 steps are 5 MB of it
    assert grown(ours, "graphs") <= 8  # a plan that was adopted, or an own step for comparison
    assert grown(ours, "objects") <= 5_000
    assert (grown(ours, "threads"), grown(ours, "files")) == (0, 0)


def conv_model():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    return built_early(model)


def test_traces_under_a_plan_leave_no_more_graphs_than_keras_s_own():
    """TensorFlow keeps the graphs of custom gradients, which plans make many of, for good."""
    x = np.ones((16, 8, 8, 2), np.float32)

    def graphs(callbacks):
        found = []
        for _ in range(2):
            conv_model().fit(x, x[:, 0, 0, :1], batch_size=8, verbose=0, callbacks=callbacks())
            found.append(many_fits.held([])["graphs"])
        return found[-1] - found[0]

    names = ["fused_norm", "mixed_precision", "fused_optimizer", "kernels"]
    accelerated = graphs(lambda: [tfaccel.AccelCallback(names, verbose=0)])
    assert accelerated <= graphs(list)


@tf.custom_gradient
def doubled(x):
    return 2 * x, lambda upstream: 2 * upstream


def test_gradients_are_let_go_with_their_graph_and_no_others():
    nested = tf.function(lambda x: doubled(x) + 1.0)
    registry = tensorflow_private.gradient_registry()
    before = set(registry)

    @tf.function
    def traced(x):
        with tensorflow_private.gradients_let_go(tf.compat.v1.get_default_graph()):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.cond(x > 0, lambda: doubled(x), lambda: x) + doubled(x) * nested(x)
            return tape.gradient(y, x)

    # x > 0: the gradient of 2 x + 2 x (2 x + 1)
    assert float(traced(tf.constant(3.0))) == 2 + 2 * (4 * 3 + 1)
    assert len(set(registry) - before) == 1  # that of `nested`, which may be called again
    other = tf.function(lambda x: tf.gradients(nested(x), x)[0])
    assert float(other(tf.constant(3.0))) == 2.0
