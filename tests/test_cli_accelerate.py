"""`tfaccel accelerate`: from a .keras file and an .npz file to a folder that predicts."""

import json

import inference_models
import keras
import numpy as np
import pytest
from command_line import call
from fake_engine import FakeEngine

import tfaccel
from tfaccel.cli import accelerate as command
from tfaccel.cli._command import UsageError

layers = keras.layers
winning = inference_models.winning


@pytest.fixture
def folder(tmp_path):
    """A folder with a model and data that fit."""
    model = keras.Sequential([keras.Input((5,), name="rows"), layers.Dense(2, name="out")])
    model.save(tmp_path / "m.keras")
    x = np.random.default_rng(0).normal(size=(12, 5)).astype("float32")
    np.savez(tmp_path / "x.npz", x=x)
    return tmp_path


def accelerate(folder, *words):
    """Accelerating that has no time, unless words say so."""
    given = ["--data", folder / "x.npz", "-o", folder / "saved", "--max_seconds=0"]
    return call(command.COMMAND, folder / "m.keras", *given, *words)


def test_a_model_becomes_a_folder(folder, capsys):
    words = ["--max_seconds=60", "--includes=frozen_weights", "--batch_size=4"]
    found = accelerate(folder, *words, "--optimize=latency")
    assert found.exit_code == 0
    assert f"Tried on 4 samples of {folder / 'x.npz'}." in found.notes
    assert [trial.plan.names for trial in found.report.trials] == [(), ("frozen_weights",)]
    assert any(trial.disk_bytes for trial in found.report.trials)
    assert "on disk" in found.to_markdown()
    assert json.loads(found.to_json())["predicts"]
    assert capsys.readouterr().out == ""
    x = np.load(folder / "x.npz")["x"]
    expected = keras.models.load_model(folder / "m.keras").predict(x, verbose=0)
    loaded = tfaccel.load(folder / "saved")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data="], "needs --data=x.npz"),
        (["-o", ""], "needs --output=folder"),
        (["--data=no.npz"], "there is no such file"),
        (["--includes=no_such"], "No pass is called 'no_such'"),
    ],
)
def test_wrong_words_are_told_so(words, message, folder):
    with pytest.raises(UsageError, match=message):
        accelerate(folder, *words)


def test_a_folder_in_use_is_refused_at_once(folder):
    with pytest.raises(UsageError, match="--output: `folder` must be a new folder"):
        accelerate(folder, "-o", folder)


@pytest.mark.parametrize("named", [True, False])
def test_8_bits_need_labels(named, folder, winning):
    x = np.load(folder / "x.npz")["x"]
    model = keras.models.load_model(folder / "m.keras")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(folder / "m.keras")
    y = model.predict(x, verbose=0).argmax(-1)
    np.savez(folder / "x.npz", x=x, **({"y": y} if named else {}))
    words = ["--allow=int8", "--batch_size=4", "--includes=fake_engine", "--max_seconds=60"]
    if not named:
        with pytest.raises(UsageError, match="must hold an array for the output"):
            accelerate(folder, *words)
        return
    FakeEngine.calibrated.clear()
    found = accelerate(folder, *words)
    assert f"Tried on 4 samples of {folder / 'x.npz'}." in found.notes
    assert all(trial.metric == 1.0 for trial in found.report.trials[:2])
    assert [one.count for one in FakeEngine.calibrated if one is not None][:1] == [12]
