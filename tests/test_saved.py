"""Files written in the middle of an accelerated training belong to the user."""

import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel

layers = keras.layers
PASSES = [
    "fused_norm",
    "fused_optimizer",
    tfaccel.passes.MixedPrecision("bfloat16"),
]
LOADS_WITHOUT_TFACCEL = """
import sys
sys.modules["tfaccel"] = None  # importing it now raises
import keras, numpy as np
model = keras.models.load_model(sys.argv[1])
assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
assert type(model.optimizer).__name__ == "SGD", type(model.optimizer)
assert model.jit_compile is False
np.save(sys.argv[2], model.predict(np.load(sys.argv[3]), verbose=0))
"""


def make():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.fixture
def images(rng):
    return rng.normal(size=(48, 8, 8, 1)).astype("float32"), rng.integers(0, 3, 48)


def saved_in_mid_training(path, images):
    """The model, of which the file is a checkpoint of a training under a plan."""
    x, y = images
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_freq=4)
    model = make()
    accel = tfaccel.AccelCallback(PASSES, verbose=0)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[checkpoint, accel])
    return model


def test_a_checkpoint_of_mid_training_has_nothing_of_tfaccel(tmp_path, images):
    path = tmp_path / "model.keras"
    model = saved_in_mid_training(str(path), images)
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json").decode()
    assert "tfaccel" not in config and "bfloat16" not in config
    loaded = keras.models.load_model(path)
    assert type(loaded.optimizer) is keras.optimizers.SGD
    x, _ = images
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)


@pytest.mark.slow
def test_a_checkpoint_of_mid_training_loads_where_tfaccel_can_t_be_imported(tmp_path, images):
    x, _ = images
    path = str(tmp_path / "model.keras")
    model = saved_in_mid_training(path, images)
    np.save(tmp_path / "x.npy", x)
    subprocess.run(
        [
            sys.executable,
            "-c",
            LOADS_WITHOUT_TFACCEL,
            path,
            tmp_path / "out.npy",
            tmp_path / "x.npy",
        ],
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npy"), model.predict(x, verbose=0), atol=1e-5
    )


class Crash(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise RuntimeError("the machine went down")


def test_backup_and_restore_resumes(tmp_path, images):
    x, y = images
    arguments = {"x": x, "y": y, "batch_size": 8, "epochs": 4, "verbose": 0, "shuffle": False}

    def callbacks():
        accel = tfaccel.AccelCallback(["fused_norm", "fused_optimizer"], verbose=0)
        return [accel, keras.callbacks.BackupAndRestore(tmp_path / "backup")]

    keras.utils.set_random_seed(9)
    whole = make()
    whole.fit(
        **arguments, callbacks=[tfaccel.AccelCallback(["fused_norm", "fused_optimizer"], verbose=0)]
    )
    keras.utils.set_random_seed(9)
    crashed = make()
    with pytest.raises(RuntimeError, match="went down"):
        crashed.fit(**arguments, callbacks=[*callbacks(), Crash()])
    resumed = make()
    history = resumed.fit(**arguments, callbacks=callbacks())
    assert history.epoch == [2, 3]
    for a, b in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.slow
def test_history_csv_and_stopping_see_what_they_saw_before(tmp_path, images):
    x, y = images

    def run(*extra):
        keras.utils.set_random_seed(9)
        model = make()
        logger = keras.callbacks.CSVLogger(tmp_path / f"{len(extra)}.csv")
        stop = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=10.0)
        history = model.fit(
            x, y, batch_size=8, epochs=5, verbose=0, callbacks=[*extra, logger, stop]
        )
        return history.history

    stock, fast = run(), run(tfaccel.AccelCallback(["fused_optimizer"], verbose=0))
    assert list(stock) == list(fast)
    assert [len(v) for v in stock.values()] == [len(v) for v in fast.values()]
    headers = [(tmp_path / f"{n}.csv").read_text().splitlines()[0] for n in (0, 1)]
    assert headers[0] == headers[1]


def test_without_tensorflow_one_sentence_says_what_to_install():
    code = "import sys; sys.modules['tensorflow'] = None; import tfaccel"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = found.stderr.strip().splitlines()[-1]
    assert "pip install 'tfaccel[cpu]'" in last
    assert last.startswith("ModuleNotFoundError: tfaccel needs TensorFlow")


def test_tensors_of_the_data_are_not_kept_after_tuning(images):
    x, y = images
    accel = tfaccel.AccelCallback(verbose=0)
    make().fit(x, y, batch_size=8, verbose=0, callbacks=[accel])
    assert not accel.session.holds_data
    assert isinstance(accel.report, tfaccel.Report)
    assert tf.executing_eagerly()
