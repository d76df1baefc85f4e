"""Two workers, of which one makes its batches slowly; each writes what ProfilerCallback found.

slow_input.py OUT_DIR
"""

import json
import os
import pathlib
import sys
import time

import models
import tensorflow as tf

import tfaccel

# Longer than a step of so small a model, also on a machine that does other work.
SECONDS = 0.3


def main():
    out, task = pathlib.Path(sys.argv[1]), int(os.environ["TEST_WORKER"])
    strategy = tfaccel.AccelStrategy()

    def slowly(x):
        time.sleep(SECONDS)
        return x

    def made(x, y):
        slow = tf.numpy_function(slowly, [x], x.dtype)
        return tf.ensure_shape(slow, x.shape), y

    dataset = tf.data.Dataset.from_tensor_slices(models.images(256)).batch(16)
    dataset = dataset.map(made) if task == 1 else dataset
    profiler = tfaccel.ProfilerCallback(verbose=0, compare_every=None)
    with strategy.scope():
        model = models.mlp()
    # While steps are traced, in the first epoch, batches are made ahead.
    model.fit(dataset, epochs=3, verbose=0, callbacks=[profiler])
    (out / f"result-{task}.json").write_text(json.dumps(profiler.summary(), default=float))
    strategy.reduce("SUM", tf.constant(1.0), axis=None)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
