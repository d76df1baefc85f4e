"""Several steps in a call beside callbacks that look, write and decide."""

import csv
import pathlib

import keras
import pytest
import tensorflow as tf
from batched_fits import Watching, accelerated, make_data, make_model
from early import built_early

import tfaccel
from tfaccel.passes.step_batching import acts_per_batch

layers = keras.layers
callbacks = keras.callbacks


def files(folder):
    """What callbacks have left, with TensorBoard's scalars in place of its files."""
    found, model = {}, make_model()
    for path in sorted(pathlib.Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".csv":
            found[name] = list(csv.reader(path.open(encoding="utf-8")))
        elif path.suffix == ".h5":
            model.load_weights(path)
            found[name] = [w.tolist() for w in model.get_weights()]
        elif "tfevents" in path.name:
            records = tf.compat.v1.train.summary_iterator(str(path))
            scalars = [
                (event.step, value.tag, tf.make_ndarray(value.tensor).tolist())
                for event in records
                for value in event.summary.value
                if value.tag != "keras"  # the model's config, with generated names
            ]
            found.setdefault(f"{path.parent.name} events", []).extend(scalars)
    return found


def tensorboard(folder):
    pytest.importorskip("tensorboard")
    return callbacks.TensorBoard(folder / "board", histogram_freq=1)


KERAS_CALLBACKS = {
    "EarlyStopping": lambda folder: callbacks.EarlyStopping(
        "val_loss", min_delta=1.0, patience=1, restore_best_weights=True
    ),
    "LearningRateScheduler": lambda folder: callbacks.LearningRateScheduler(
        lambda epoch, rate: rate * 0.5
    ),
    "ReduceLROnPlateau": lambda folder: callbacks.ReduceLROnPlateau(
        "loss", min_delta=2.0, patience=1
    ),
    "ModelCheckpoint": lambda folder: callbacks.ModelCheckpoint(
        folder / "{epoch:02d}-{val_loss:.6f}.weights.h5", save_weights_only=True
    ),
    "BackupAndRestore": lambda folder: callbacks.BackupAndRestore(folder / "backup"),
    "CSVLogger": lambda folder: callbacks.CSVLogger(folder / "log.csv"),
    "TensorBoard": tensorboard,
    "TerminateOnNaN": lambda folder: callbacks.TerminateOnNaN(),
}


# What the writers leave, by the ends of the names in `files`.
WRITTEN = {"ModelCheckpoint": ".h5", "CSVLogger": ".csv", "TensorBoard": " events"}


@pytest.mark.parametrize(
    "names",
    [
        ("EarlyStopping",),
        pytest.param(("LearningRateScheduler",), marks=pytest.mark.slow),
        pytest.param(("ReduceLROnPlateau",), marks=pytest.mark.slow),
        ("TensorBoard",),
        # They decide nothing here, so one training serves them all.
        ("ModelCheckpoint", "BackupAndRestore", "CSVLogger", "TerminateOnNaN"),
    ],
    ids=" ".join,
)
def test_keras_s_callbacks_decide_and_write_the_same(names, tmp_path):
    def run(folder, *added):
        keras.utils.clear_session(free_memory=False)  # the layers' names are in the files
        model = make_model() if added else built_early(make_model())
        x, y = make_data()
        folder.mkdir()
        history = model.fit(
            x, y, batch_size=8, epochs=6, verbose=0, validation_split=0.2,
            callbacks=[*(KERAS_CALLBACKS[name](folder) for name in names), *added],
        )  # fmt: skip
        weights = [w.tolist() for w in model.get_weights()]
        rate = float(model.optimizer.learning_rate)
        return history.epoch, history.history, weights, rate, files(folder)

    accel = accelerated()
    stock, batched = run(tmp_path / "stock"), run(tmp_path / "batched", accel)
    assert batched == stock
    assert accel.plan.names == ("step_batching",)
    epochs, _, _, rate, written = stock
    assert (len(epochs) < 6) == ("EarlyStopping" in names)  # or nothing would be decided
    assert (rate < 0.005) == (names[0] in ("ReduceLROnPlateau", "LearningRateScheduler"))
    for name, end in WRITTEN.items():
        assert any(file.endswith(end) for file in written) == (name in names)


def test_the_progress_bar_ends_the_same(capsys):
    def shown(*added):
        x, y = make_data()
        model = make_model() if added else built_early(make_model())
        model.fit(x, y, batch_size=8, verbose=2, callbacks=list(added))
        return [line.split(" - ")[3:] for line in capsys.readouterr().out.splitlines()]

    assert shown(accelerated()) == shown() != []


class Inheriting(Watching):
    pass


class Saving(callbacks.ModelCheckpoint):
    pass


class PerEpoch(callbacks.EarlyStopping):
    pass


def with_hook(name):
    return type("Own", (callbacks.Callback,), {name: lambda self, batch, logs=None: None})()


ACTING = [
    (Watching(), "on_train_batch_end"),
    (Inheriting(), "on_train_batch_end"),
    (with_hook("on_train_batch_begin"), "on_train_batch_begin"),
    (with_hook("on_batch_begin"), "on_batch_begin"),
    (with_hook("on_batch_end"), "on_batch_end"),
    (callbacks.LambdaCallback(on_train_batch_end=print), "on_train_batch_end"),
    (callbacks.LambdaCallback(on_batch_end=print), "on_batch_end"),
    (callbacks.ModelCheckpoint("x.keras", save_freq=5), "on_train_batch_end"),
    (callbacks.BackupAndRestore("x", save_freq=5), "on_train_batch_end"),
    (Saving("x.keras"), "on_train_batch_end"),
    (callbacks.LambdaCallback(on_epoch_end=print), None),
    (callbacks.ModelCheckpoint("x.keras"), None),
    (callbacks.BackupAndRestore("x"), None),
    (callbacks.ProgbarLogger(), None),
    (callbacks.TerminateOnNaN(), None),
    (callbacks.History(), None),
    (PerEpoch(), None),
    (tfaccel.AccelCallback(), None),
    (tfaccel.ProfilerCallback(), None),
]


@pytest.mark.parametrize(("callback", "hook"), ACTING, ids=map(str, range(len(ACTING))))
def test_who_acts_at_every_batch(callback, hook):
    assert acts_per_batch(callback) == hook


@pytest.mark.parametrize(
    ("settings", "acts"),
    [
        ({}, False),
        ({"update_freq": "batch"}, True),
        ({"update_freq": 10}, True),
        ({"profile_batch": 2}, True),
        ({"profile_batch": (2, 5)}, True),
        ({"write_steps_per_second": True}, True),
        ({"histogram_freq": 1}, False),
    ],
)
def test_when_tensorboard_acts_at_every_batch(settings, acts, tmp_path):
    pytest.importorskip("tensorboard")
    assert bool(acts_per_batch(callbacks.TensorBoard(tmp_path, **settings))) == acts


def test_a_callback_that_acts_per_batch_is_named():
    x, y = make_data()
    with pytest.warns(UserWarning, match=r"Watching.on_train_batch_end acts at every batch"):
        accel = accelerated()
        make_model().fit(x, y, verbose=0, callbacks=[accel, Watching()])
    assert accel.plan.is_baseline
