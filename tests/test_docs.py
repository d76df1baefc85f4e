"""The examples in docstrings, in README and in docs/ run as they stand."""

import doctest
import functools
import importlib
import pathlib
import pkgutil
import re
import warnings

import keras
import numpy as np
import pytest
import rich
import tensorflow as tf

import tfaccel

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(tfaccel.__path__, prefix="tfaccel.")
)
WORLD = {"tfaccel": tfaccel, "keras": keras, "np": np, "tf": tf}


def has_examples(name):
    """To look through a module for none takes as long as many tests do."""
    path = pathlib.Path(*name.split("."))
    files = (ROOT / path.with_suffix(".py"), ROOT / path / "__init__.py")
    return any(">>>" in file.read_text(encoding="utf-8") for file in files if file.is_file())


def test_every_module_can_be_imported():
    for name in MODULES:
        importlib.import_module(name)


@pytest.mark.parametrize("name", [*filter(has_examples, MODULES)])
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs=WORLD, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_public_names_have_docstrings():
    for name in tfaccel.__all__:
        assert (getattr(tfaccel, name).__doc__ or "").strip(), name


# Code with one of these needs an optional extra, whose own tests run the like of it.
OF_EXTRAS = ("import openvino", "import onnxruntime", "opencl", 'allow=("int8",)')


def blocks_of(path):
    """The Python code in a document."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.S)


PAGES = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))
PAGES = [page for page in PAGES if blocks_of(page)]


def small_model():
    """Named as the documents name what is in it."""
    rows = keras.Input((4,), name="rows")
    model = keras.Model(rows, keras.layers.Dense(1, name="out")(keras.layers.Dense(3)(rows)))
    model.compile("sgd", "mse")
    return model


def world():
    """What the code in a document finds."""
    x, y = np.ones((64, 4), "float32"), np.ones((64, 1), "float32")
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    data = {"x": x, "y": y, "x_test": x, "y_test": y, "dataset": dataset}
    return WORLD | data | {"model": small_model(), "rich": rich, "build_model": build_model}


def build_model():
    softmax = keras.layers.Dense(3, activation="softmax")
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), softmax])


def of_data(tmp_path):
    """Recordings, as the document on data reads them."""
    paths = [str(tmp_path / f"{i}.wav") for i in range(8)]
    for path in paths:
        tf.io.write_file(path, tf.audio.encode_wav(np.zeros((16000, 1), "float32"), 16000))
    return {
        "paths": np.array(paths),
        "labels": np.ones((8, 1), "float32"),
        "features": lambda audio: audio[:4, 0],
    }


def of_kernels(tmp_path):
    """Operands of the products in the document on kernels."""
    return {
        "x": np.ones((2, 8, 8, 3), "float32"),
        "filters": np.ones((3, 3, 3, 1), "float32"),
        "bias": np.ones(1, "float32"),
        "a": np.ones((4, 5), "float32"),
        "b": np.ones((6, 5), "float32"),
        "only_3x3": lambda spec: None,
    }


MORE = {"docs/data.md": of_data, "docs/kernels.md": of_kernels}


@pytest.fixture
def little_time(monkeypatch):
    """By default these may take two minutes."""
    for name in ("tune", "accelerate"):
        quick = functools.partial(getattr(tfaccel, name), max_tuning_seconds=1)
        monkeypatch.setattr(tfaccel, name, quick)


@pytest.mark.usefixtures("little_time")
@pytest.mark.parametrize("page", PAGES)
def test_the_code_in_a_document(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = world() | MORE.get(page, lambda _: {})(tmp_path)
    with warnings.catch_warnings(record=True) as warned:
        for block in blocks_of(page):
            if any(words in block for words in OF_EXTRAS):
                continue
            # `tfaccel accelerate -o folder` stands before it, which saves as `save` does.
            exec(block.replace("folder/saved_model", "saved/saved_model"), found)
    if "step" in found:
        assert found["step"].plan.is_baseline  # four steps are too few
    name = pathlib.Path(page).stem
    if page.startswith("docs/passes/") and "accel" in found:
        told = [str(one.message) for one in warned]
        left_out = any(f"tfaccel leaves out {name}" in one for one in told)
        assert name in found["accel"].plan.names or left_out


@pytest.mark.usefixtures("little_time")
def test_the_code_in_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = world()
    blocks = blocks_of("README.md")
    assert blocks
    for block in blocks:
        exec(block, found)
    if any("plan.json" in block for block in blocks):
        assert (tmp_path / "plan.json").is_file()
        assert "| plan |" in capsys.readouterr().out
