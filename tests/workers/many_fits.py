"""Many fits in one process, or one long fit: what is there after each of them, as JSON.

    python tests/workers/many_fits.py new accelerated 200

The first word says what each fit trains: `new` a new model, `cleared` a new one after
`keras.backend.clear_session()`, `same` the same model again, `long` is one fit of so many steps.
The second is `stock` for Keras alone, `accelerated` for fits with AccelCallback and
ProfilerCallback.
"""

import collections
import gc
import json
import os
import pathlib
import sys
import tempfile
import threading
import weakref

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import tfaccel
from tfaccel.system.memory import process_bytes

GRAPHS = ("FuncGraph", "ConcreteFunction", "AtomicFunction")
ROWS, BATCH = 64, 8


def compiled():
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    return model


def callbacks(index, folder):
    """Those of a fit: a plan that is given and the search take turns."""
    accel = (
        tfaccel.AccelCallback(["fused_optimizer"], verbose=0),
        tfaccel.AccelCallback(verbose=0, cache_dir=folder),
    )[index % 2]
    return [accel, tfaccel.ProfilerCallback(folder, verbose=0)]


def fit(model, index, folder, accelerated, epochs=2):
    x = np.ones((ROWS, 4), np.float32)
    added = callbacks(index, folder) if accelerated else []
    model.fit(x, x[:, :1], batch_size=BATCH, epochs=epochs, verbose=0, callbacks=added)


def held(models):
    """What the process holds now."""
    for thread in threading.enumerate():
        if thread.name.startswith("tfaccel"):
            thread.join()  # lets go of an iterator
    gc.collect()
    counts = collections.Counter(type(thing).__name__ for thing in gc.get_objects())
    files = pathlib.Path("/proc/self/fd")
    return {
        "bytes": process_bytes(),
        "threads": threading.active_count(),
        "tasks": len(list(pathlib.Path("/proc/self/task").iterdir())) if files.exists() else None,
        "files": len(list(files.iterdir())) if files.exists() else None,
        "graphs": sum(counts[name] for name in GRAPHS),
        "objects": counts.total(),
        "models": sum(ref() is not None for ref in models),
    }


def many(kind, accelerated, count, folder, every):
    """The readings after each `every` fits."""
    model, models, found = None, [], []
    for index in range(count):
        if kind == "cleared":
            keras.backend.clear_session()
        if kind != "same" or model is None:
            model = compiled()
            models.append(weakref.ref(model))
        fit(model, index, folder, accelerated)
        if (index + 1) % every == 0:
            found.append({"after": index + 1, **held(models)})
    return found


class Readings(keras.callbacks.Callback):
    """Reads at the end of each epoch."""

    def __init__(self, per_epoch):
        super().__init__()
        self.found, self.per_epoch = [], per_epoch

    def on_epoch_end(self, epoch, logs=None):
        self.found.append({"after": (epoch + 1) * self.per_epoch, **held([])})


def long(accelerated, count, folder):
    """The readings of one fit, at 20 moments."""
    per_epoch = max(1, count // 20)
    model, readings = compiled(), Readings(per_epoch)
    x = np.ones((2 * per_epoch, 4), np.float32)
    added = [
        tfaccel.AccelCallback(verbose=0, cache_dir=folder),
        tfaccel.ProfilerCallback(folder, update_freq=1000, verbose=0),
    ]
    given = [*(added if accelerated else []), readings]
    model.fit(x, x[:, :1], batch_size=2, epochs=20, verbose=0, callbacks=given)
    return readings.found


def main(kind, side, count):
    accelerated = side == "accelerated"
    with tempfile.TemporaryDirectory() as folder:
        if kind == "long":
            found = long(accelerated, count, folder)
        else:
            found = many(kind, accelerated, count, folder, max(1, count // 20))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
