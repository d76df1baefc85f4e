"""AcceleratedModel.save and tfaccel.load: what won, in a folder that runs without tfaccel."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import inference_models
import keras
import numpy as np
import pytest
import tensorflow as tf
from fake_engine import FakeEngine
from inference_models import CASES, COUNT, accelerate, assert_alike, numbers

import tfaccel
from tfaccel.inference.saving.manifest import MANIFEST

layers = keras.layers
winning = inference_models.winning
# Two that can't be compared from another state, and those whose outputs are no dict.
PLANS = {"engine": ["fake_engine"], "plan": ["frozen_weights"], "baseline": "baseline"}
NAMED = [
    ("images", "engine"),
    ("subclassed_not_built", "plan"),
    ("several_inputs_and_outputs", "engine"),
    ("several_inputs_and_outputs", "baseline"),
    ("list_of_inputs", "plan"),
    ("masked_tokens", "engine"),
    ("words", "baseline"),
    ("words", "engine"),
    ("own_step", "plan"),
    ("preprocessing", "baseline"),
]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(FakeEngine, "fails", False)


def case_of(name):
    return next(case for case in CASES if case.name == name).make()


def dense_model():
    return keras.Sequential([keras.Input((4,), name="rows"), layers.Dense(2, name="out")])


@pytest.mark.parametrize(("name", "plan"), NAMED)
def test_what_is_loaded_predicts_the_same(name, plan, winning, tmp_path):
    model, x = case_of(name)
    fast = accelerate(model, x, PLANS[plan])
    fast.save(tmp_path / "saved")
    loaded = tfaccel.load(tmp_path / "saved")
    assert isinstance(loaded, tfaccel.AcceleratedModel)
    assert loaded.plan == fast.plan and loaded.report.plan == fast.plan
    expected = model.predict(x, batch_size=5, verbose=0)
    assert_alike(expected, loaded.predict(x, batch_size=5, verbose=0))
    some = tf.nest.map_structure(lambda leaf: tf.convert_to_tensor(leaf)[:3], x)
    assert_alike(model.predict(some, verbose=0), tf.nest.map_structure(np.asarray, loaded(some)))


def test_a_saved_model_has_the_names_of_the_model(tmp_path):
    model, x = case_of("several_inputs_and_outputs")
    fast = accelerate(model, x, "baseline")
    fast.save(tmp_path / "saved")
    served = tf.saved_model.load(str(tmp_path / "saved/saved_model"))
    serve = served.signatures["serving_default"]
    assert set(serve.structured_input_signature[1]) == {"a", "b"}
    assert set(serve.structured_outputs) == set(model.output_names)
    model = dense_model()
    accelerate(model, numbers(4), "baseline").save(tmp_path / "other")
    served = tf.saved_model.load(str(tmp_path / "other/saved_model"))
    found = served.signatures["serving_default"](rows=numbers(4)[:3])
    assert_alike(model.predict(numbers(4)[:3], verbose=0), found["out"].numpy())


def test_the_report_tells_the_size(tmp_path, winning):
    fast = accelerate(dense_model(), numbers(4), PLANS["plan"])
    fast.save(tmp_path / "saved")
    written = sum(p.stat().st_size for p in (tmp_path / "saved").rglob("*") if p.is_file())
    assert fast.report.trials[1].disk_bytes == written
    assert "on disk" in fast.report.table()[0]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "plans") == ["saved"]


def test_what_was_loaded_is_all_there_is(tmp_path, winning):
    model = dense_model()
    accelerate(model, numbers(4), PLANS["engine"]).save(tmp_path / "saved")
    loaded = tfaccel.load(tmp_path / "saved")
    for call in (loaded.refresh, lambda: loaded.export(tmp_path / "other")):
        with pytest.raises(ValueError, match="needs the Keras model"):
            call()
    with pytest.raises(ValueError, match="inputs must be rows: float32.*Received"):
        loaded(numbers(5))
    loaded.save(tmp_path / "copy")
    again = tfaccel.load(tmp_path / "copy")
    assert_alike(model.predict(numbers(4), verbose=0), again.predict(numbers(4), verbose=0))
    FakeEngine.fails = True
    with pytest.raises(RuntimeError, match="has lost its graph"):
        again(numbers(4))


def damaged(name, change):
    def apply(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return apply


def edited(**fields):
    def apply(folder):
        data = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(data | fields))

    return apply


DAMAGES = {
    "no folder": (lambda folder: folder.rename(folder.with_name("gone")), "not a model that"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "not a model that"),
    "half a manifest": (damaged(MANIFEST, lambda data: data[: len(data) // 2]), "not a model that"),
    "binary manifest": (damaged(MANIFEST, lambda data: b"\xff\xfe" + data), "not a model that"),
    "a changed file": (
        damaged("graph.pb", lambda data: data[:-9] + b"123456789"),
        "graph.pb is not",
    ),
    "half a file": (damaged("graph.pb", lambda data: data[: len(data) // 2]), "graph.pb is not"),
    "a missing file": (lambda folder: (folder / "graph.pb").unlink(), "graph.pb is missing"),
    "another schema": (edited(schema=99), "schema"),
    "no files": (edited(files={}), "names no files"),
    "unknown plan": (edited(plan={"schema": 1, "passes": [{"name": "no_such"}]}), "No pass"),
    "wrong places": (edited(x=3), "at the places"),
    "wrong structure": (edited(y={"dict": 3}), "not a model that"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved model, to be copied."""
    folder = tmp_path_factory.mktemp("saved") / "saved"
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(inference_models.racing, "CLEARLY_SLOWER", float("inf"))
        gain = tfaccel.Speedup(2.0, 1.9, 2.1, 6)
        context.setattr(inference_models.timing, "speedup", lambda own, fast: gain)
        accelerate(dense_model(), numbers(4), PLANS["engine"]).save(folder)
    return folder


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_folders_are_refused(damage, reason, saved, tmp_path):
    folder = tmp_path / "saved"
    shutil.copytree(saved, folder)
    damage(folder)
    with pytest.raises(ValueError, match=reason):
        tfaccel.load(folder)


def test_an_engine_that_is_not_installed_is_named(saved, monkeypatch):
    monkeypatch.setattr(FakeEngine, "module", "no_such_module_anywhere")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tfaccel\[fake\]'"):
        tfaccel.load(saved)


def test_other_files_are_not_overwritten(tmp_path):
    fast = accelerate(dense_model(), numbers(4), "baseline")
    (tmp_path / "used").mkdir()
    (tmp_path / "used/mine.txt").write_text("mine")
    for place in ("used", "used/mine.txt"):
        with pytest.raises(ValueError, match="`folder` must be a new folder"):
            fast.save(tmp_path / place)
    (tmp_path / "empty").mkdir()
    for _ in range(2):  # over itself, too
        fast.save(tmp_path / "empty")
    assert tfaccel.load(tmp_path / "empty").predict(numbers(4), verbose=0).shape == (COUNT, 2)


def test_what_can_not_be_saved_is_told(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, {1: layers.Dense(2)(inputs)})
    fast = accelerate(model, numbers(4), "baseline")
    with pytest.raises(ValueError, match="keys of a saved structure must be strings"):
        fast.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def run_recipe(marker, folder, x):
    """What a process without tfaccel predicts by the recipe in the docs that has the marker."""
    text = (pathlib.Path(__file__).parent.parent / "docs/inference.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    (recipe,) = [block for block in blocks if marker in block]
    np.save(folder / "x.npy", x)
    program = (
        f"import sys\nimport numpy as np\nx = np.load('x.npy')\n{recipe}\n"
        "assert 'tfaccel' not in sys.modules\nnp.save('y.npy', np.asarray(y))\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)
    return np.load(folder / "y.npy")


@pytest.mark.slow
def test_the_recipe_for_a_saved_model(tmp_path):
    model = dense_model()
    accelerate(model, numbers(4), "baseline").save(tmp_path / "folder")
    found = run_recipe('tf.saved_model.load("folder/saved_model")', tmp_path, numbers(4)[:5])
    assert_alike(model.predict(numbers(4)[:5], verbose=0), found)
