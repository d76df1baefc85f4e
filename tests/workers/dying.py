"""A worker that trains until worker VICTIM is killed by itself in a step.

python dying.py OUT_DIR VICTIM
"""

import json
import os
import pathlib
import signal
import sys
import time

import keras
import numpy as np

from tfaccel.distribute import AccelStrategy


class Death(keras.callbacks.Callback):
    def __init__(self, out, victim, task):
        super().__init__()
        self.out, self.victim, self.task = out, victim, task

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == 5 and self.task == self.victim:
            (self.out / "died").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    out, victim = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    strategy = AccelStrategy()
    task = int(os.environ["TEST_WORKER"])
    with strategy.scope():
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        model.compile("sgd", "mse")
    x = np.ones((64, 8), "float32")
    try:
        model.fit(
            x,
            x[:, :4],
            batch_size=32,
            epochs=10**6,
            verbose=0,
            callbacks=[Death(out, victim, task)],
        )
    except Exception as error:
        found = {"error": type(error).__name__, "time": time.time()}
        (out / f"survivor-{task}.json").write_text(json.dumps(found))
        raise SystemExit(3) from error


if __name__ == "__main__":
    main()
