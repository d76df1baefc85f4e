"""The examples in docstrings and in README run as they stand."""

import doctest
import functools
import importlib
import pathlib
import pkgutil
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(tfaccel.__path__, prefix="tfaccel.")
)
WORLD = {"tfaccel": tfaccel, "keras": keras, "np": np, "tf": tf}


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs=WORLD, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_public_names_have_docstrings():
    for name in tfaccel.__all__:
        assert (getattr(tfaccel, name).__doc__ or "").strip(), name


def blocks_of(path):
    """The Python code in a document."""
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), flags=re.S)


@pytest.mark.parametrize("path", ["README.md", "docs/fit.md"])
def test_the_code_in_the_readme(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # By default it may take two minutes.
    monkeypatch.setattr(tfaccel, "tune", functools.partial(tfaccel.tune, max_tuning_seconds=1))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    x, y = np.ones((64, 4), "float32"), np.ones((64, 1), "float32")
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    blocks = blocks_of(path)
    assert len(blocks) >= 2
    world = {"model": model, "build_model": lambda: model, "x": x, "y": y, "dataset": dataset}
    for block in blocks:
        exec(block, WORLD | world)
    assert (tmp_path / "plan.json").is_file()
    assert "| plan |" in capsys.readouterr().out


def test_the_code_in_the_document_on_loops(capsys):
    x, y = np.ones((64, 4), "float32"), np.ones((64, 1), "float32")
    world = WORLD | {"dataset": tf.data.Dataset.from_tensor_slices((x, y)).batch(16)}
    for block in blocks_of("docs/loops.md"):
        exec(block, world)
    assert world["step"].plan.is_baseline  # four steps are too few
