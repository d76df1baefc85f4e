"""What `tfaccel run --backup_dir` keeps of fits, and how they go on."""

import contextlib

import keras
import numpy as np
import pytest

from tfaccel.launch import every_fit as every
from tfaccel.launch.fits import Fits
from tfaccel.launch.start import Options
from tfaccel.launch.workers.backup import Backup
from tfaccel.launch.workers.cluster import tf_config

X = np.linspace(0.0, 1.0, 24, dtype="float32").reshape(8, 3)
Y = X[:, :1] * 2
SMALL = {"batch_size": 2, "shuffle": False, "verbose": 0}  # four steps an epoch


class Stop(keras.callbacks.Callback):
    """Interrupts at a batch of an epoch, and notes the epochs that begin."""

    def __init__(self, *at):
        super().__init__()
        self.at, self.epochs = at, []

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epochs[-1], batch) == self.at:
            raise KeyboardInterrupt


def make():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    return model


def program(model, *, stop=(), folder=None, save_freq=None):
    """Two fits of one model; gives the epochs of each, as far as they went."""
    found = [Stop(*stop), Stop()]
    options = Options(tuning="off", backup_dir=folder, save_freq=save_freq)
    with every.every_fit(Fits(options).begin), contextlib.suppress(KeyboardInterrupt):
        model.fit(X, Y, epochs=3, callbacks=[found[0]], **SMALL)
        model.fit(X, Y, epochs=2, callbacks=[found[1]], **SMALL)
    return [one.epochs for one in found]


def assert_same(model, other):
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(model.optimizer.variables, other.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def whole():
    """The program without a stop."""
    model = make()
    assert program(model) == [[0, 1, 2], [0, 1]]
    return model


def test_a_stopped_fit_goes_on_after_its_last_epoch(tmp_path, whole):
    folder = str(tmp_path / "kept")
    assert program(make(), stop=(2, 1), folder=folder) == [[0, 1, 2], []]
    # As a process leaves it that was killed while it saved.
    (tmp_path / "kept" / "fit-0.tar.new").write_bytes(b"half")
    model = make()
    assert program(model, folder=folder) == [[2], [0, 1]]
    assert_same(model, whole)
    # Both are done: no step is taken.
    again = make()
    assert program(again, folder=folder) == [[], []]
    assert_same(again, whole)


def test_a_fit_is_kept_amid_its_epochs(tmp_path):
    folder = str(tmp_path)
    stopped = make()
    program(stopped, stop=(1, 3), folder=folder, save_freq=3)
    model = make()
    # Saved after the third and sixth step and at the end of the epoch: two steps are ahead of it.
    assert program(model, stop=(1, 0), folder=folder, save_freq=3)[0] == [1]
    assert int(model.optimizer.iterations.numpy()) == 6
    assert int(stopped.optimizer.iterations.numpy()) == 7


def test_a_program_that_keeps_its_fits_is_left_to_it(tmp_path):
    own = keras.callbacks.BackupAndRestore(tmp_path / "own")
    found = Fits(Options(tuning="off", backup_dir=str(tmp_path / "ours"))).begin(make(), [own])
    assert not any(isinstance(c, keras.callbacks.BackupAndRestore) for c in found.callbacks)


def test_workers_that_train_each_by_itself(tmp_path, monkeypatch, recwarn):
    """They are warned, and two don't write to one place."""

    def begun(index):
        if index is not None:
            monkeypatch.setenv("TF_CONFIG", tf_config(["a:1", "b:1"], index))
        fits = Fits(Options(tuning="off", backup_dir=str(tmp_path), launched=True))
        recwarn.clear()
        kept = [c for c in fits.begin(make(), []).callbacks if isinstance(c, Backup)]
        return len(kept), sum("AccelStrategy" in str(one.message) for one in recwarn)

    assert begun(None) == (1, 0)  # one worker, which is no cluster
    assert begun(0) == (1, 1)
    assert begun(1) == (0, 0)


def test_a_model_that_is_not_built_is_trained_all_the_same(tmp_path):
    callback = Backup(tmp_path / "fit-0.tar", "epoch", None)
    callback.set_model(keras.Sequential([keras.layers.Dense(1)]))
    with pytest.warns(UserWarning, match=r"keras\.Input"):
        callback.on_train_begin()
    callback.on_epoch_end(0)
    callback.on_train_end()
    assert list(tmp_path.iterdir()) == []
