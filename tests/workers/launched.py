"""A program for `tfaccel run --workers`: trains as `models.train_cnn`, and writes what came of it.

    launched.py OUT_DIR [VICTIM]

Worker VICTIM kills itself in its second epoch, once.
"""

import json
import os
import pathlib
import signal
import sys

import keras
import models

from tfaccel.distribute import AccelStrategy


class Death(keras.callbacks.Callback):
    def __init__(self, died):
        super().__init__()
        self.died = died
        self.epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (1, 1) and not self.died.exists():
            self.died.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    out, victim = pathlib.Path(sys.argv[1]), sys.argv[2:]
    strategy = AccelStrategy()
    index = strategy.cluster_resolver.task_id
    with strategy.scope():
        model = models.cnn(synchronized=True)
    x, y = models.images(80)
    history = model.fit(
        x,
        y,
        batch_size=32,
        epochs=3,
        shuffle=False,
        verbose=0,
        validation_data=models.images(41, seed=4),
        callbacks=[Death(out / "died")] if victim == [str(index)] else [],
    )
    # A second fit, which is to begin at its own first epoch whatever was restored.
    more = model.fit(x, y, batch_size=32, epochs=1, shuffle=False, verbose=0)
    found = {
        "history": history.history,
        "more": more.history["loss"],
        "epochs": history.epoch,
        "weights": [w.astype("float64").tolist() for w in model.get_weights()],
    }
    (out / f"result-launched-{index}.json").write_text(json.dumps(found))
    print("trained", index)


if __name__ == "__main__":
    main()
