"""Processes that are forked: after the import, in the midst of a fit, after it.

python tests/interrupted/forking.py import|midst|after
"""

import multiprocessing
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import keras
import numpy as np
from fault_trainings import TRAININGS, make_model, values_of

import tfaccel

MOST_SECONDS = 60.0


def train(index: int, *more: keras.callbacks.Callback) -> list[np.ndarray]:
    """A training under a given plan, with every callback."""
    training, model = TRAININGS["given"], make_model()
    with tempfile.TemporaryDirectory() as folder:
        own = [
            training.callback(pathlib.Path(folder)),
            tfaccel.ProfilerCallback(folder, verbose=0),
        ]
        model.fit(**training.arguments(), callbacks=[*own, *more])
    return values_of(model)


def stock(index: int) -> list[np.ndarray]:
    model = make_model()
    model.fit(**TRAININGS["given"].arguments())
    return values_of(model)


def ended(process: int) -> int:
    """The exit status of a forked process, which may not hang."""
    end = time.monotonic() + MOST_SECONDS
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(process, 9)
    os.waitpid(process, 0)
    raise TimeoutError("a forked process hangs")


def forked(end: Callable[[int], object] = sys.exit) -> int:
    """The exit status of a forked process; it ends as programs do, with all that is to be done."""
    process = os.fork()
    if not process:
        end(7)
    return ended(process)


class Forks(keras.callbacks.Callback):
    """In the midst of a fit: a process of its own, a pool for data.

    Such a process ends at once, as those of multiprocessing do. One that left the fit would wait
    for tf.data's threads, which it hasn't, under Keras alone, too.
    """

    def on_train_batch_end(self, batch, logs=None):
        if batch in (0, 3):
            assert forked(os._exit) == 7
            assert pooled(square, [1, 2]) == [1, 4]


def square(x: int) -> int:
    return x * x


def pooled(function, items):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map_async(function, items).get(MOST_SECONDS)


def same(left, right) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def after_import() -> None:
    """TensorFlow has begun nothing, so that all of it can run in each process."""
    ours, again = pooled(train, [0, 1])
    (keras_s,) = pooled(stock, [0])
    assert same(ours, keras_s) and same(again, keras_s)
    assert same(train(2), keras_s)


def amid_fits() -> None:
    assert same(train(0, Forks()), stock(0))


def after_fits() -> None:
    before = train(0)
    assert forked() == 7
    assert pooled(square, [1, 2]) == [1, 4]
    assert same(train(1), before)


if __name__ == "__main__":
    {"import": after_import, "midst": amid_fits, "after": after_fits}[sys.argv[1]]()
