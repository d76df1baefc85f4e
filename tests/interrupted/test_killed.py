"""A training that is killed in the midst of a phase, and gone on with: it ends as undisturbed."""

import functools
import itertools
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import victim
from fault_trainings import as_measured, left_on

pytestmark = pytest.mark.skipif(os.name != "posix", reason="such signals are Unix's")

ROOT = pathlib.Path(__file__).parents[2]


def variables(model):
    return [v.numpy() for v in [*model.weights, *model.optimizer.variables]]


@functools.cache
def undisturbed(name, folder):
    """What Keras alone makes of the training."""
    return variables(victim.fit(name, pathlib.Path(folder), accelerated=False))


def killed(point, number, folder):
    """Trains in a process until it is killed."""
    words = [sys.executable, victim.__file__, point, number.name, str(folder)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == -number, done.stderr


def checkpointed(name, folder):
    """Goes on from the file that ModelCheckpoint left, as programs do that name the epoch."""
    training, path = victim.training_of(name), folder / "model.keras"
    if not path.exists():  # killed in the first epoch
        return victim.fit(name, folder / "again")
    model = keras.models.load_model(path)
    done = int(model.optimizer.iterations) // training.batches
    with as_measured():
        given = training.arguments() | {"initial_epoch": done}
        model.fit(**given, callbacks=[training.callback(folder / "cache")])
    return model


def assert_same(model, expected):
    for ours, keras_s in zip(variables(model), expected, strict=True):
        np.testing.assert_array_equal(ours, keras_s)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "number"), itertools.product(victim.POINTS, [signal.SIGTERM, signal.SIGKILL])
)
def test_a_killed_training_is_gone_on_with(point, number, tmp_path, tmp_path_factory, recwarn):
    name = victim.POINTS[point][0]
    expected = undisturbed(name, str(tmp_path_factory.getbasetemp() / name))
    killed(point, number, tmp_path)
    recwarn.clear()
    # First from the file, as BackupAndRestore removes what it has when a fit ends well.
    assert_same(checkpointed(name, tmp_path), expected)
    model = victim.fit(name, tmp_path)
    assert_same(model, expected)
    assert not left_on(model, tmp_path / "cache")
    assert not [one for one in recwarn if str(one.message).startswith("tfaccel")]
