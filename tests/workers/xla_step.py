"""One worker of several: what XLA can compile of a step, and what it says of the rest.

xla_step.py OUT_DIR
"""

import json
import os
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

import tfaccel


def cause(function):
    """The words of the error; empty for none."""
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def gradients_compiled(strategy, x):
    """Forward and backward pass in XLA, on a variable of all workers; sums and update without."""
    with strategy.scope():
        variable = tf.Variable(tf.ones((4, 2)))

    @tf.function(jit_compile=True)
    def gradient(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((x @ variable) ** 2)
        return tape.gradient(loss, variable)

    @tf.function
    def step(x):
        def on_replica(x):
            total = tf.distribute.get_replica_context().all_reduce("SUM", gradient(x))
            variable.assign_sub(0.1 * total)

        strategy.run(on_replica, (x,))

    return lambda: step(x)


def whole_step_compiled(strategy, x):
    """Keras's own step, compiled by XLA."""
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        model.compile("sgd", "mse", jit_compile=True)
    return lambda: model.fit(x, x[:, :2], batch_size=8, verbose=0)


def main():
    out, task = pathlib.Path(sys.argv[1]), os.environ["TEST_WORKER"]
    strategy, x = tfaccel.AccelStrategy(), np.ones((8, 4), "float32")
    found = {
        "gradients": cause(gradients_compiled(strategy, x)),
        "whole": cause(whole_step_compiled(strategy, x)),
        "asked": cause(lambda: tfaccel.AccelStrategy(jit_compile=True)),
    }
    (out / f"result-{task}.json").write_text(json.dumps(found))
    strategy.reduce("SUM", tf.constant(1.0), axis=None)
    # TensorFlow has corrupted its memory by then, and may crash as it lets go of it.
    os._exit(0)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
