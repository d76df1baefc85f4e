import json
import multiprocessing
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfaccel.autotune.plan_cache import PlanCache, workload_key
from tfaccel.autotune.report import Report
from tfaccel.core.plan import Plan
from tfaccel.core.workload import Workload
from tfaccel.measure.timing import Speedup
from tfaccel.passes import FusedNorm
from tfaccel.system.cache_dir import default_directory

REPORT = Report(trials=(), plan=Plan((FusedNorm(),)), gain=Speedup(1.5, 1.4, 1.6, 6))


def test_what_was_kept_comes_back(tmp_path):
    cache = PlanCache(tmp_path / "made" / "when needed")
    assert cache.load("k") is None
    cache.save("k", REPORT)
    assert cache.load("k") == REPORT
    assert os.listdir(cache.directory) == ["k.json"]


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "foreign", "stale", "other key", "binary"]
)
def test_a_damaged_file_is_ignored_with_a_warning(tmp_path, damage):
    cache = PlanCache(tmp_path)
    cache.save("k", REPORT)
    path = tmp_path / "k.json"
    whole = json.loads(path.read_text())
    path.write_bytes(
        {
            "truncated": path.read_bytes()[:-40],
            "empty": b"",
            "foreign": b'["something else"]',
            "stale": json.dumps(whole | {"schema": 0}).encode(),
            "other key": json.dumps(whole | {"key": "j"}).encode(),
            "binary": bytes(range(256)),
        }[damage]
    )
    with pytest.warns(UserWarning, match="ignores the cached plan"):
        assert cache.load("k") is None


def test_a_place_that_can_t_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="could not keep the plan"):
        PlanCache(tmp_path / "file").save("k", REPORT)


def _write(directory: str, number: int) -> None:
    for round_ in range(50):
        PlanCache(directory).save("shared", REPORT)
        PlanCache(directory).save(f"own-{number}-{round_}", REPORT)


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(str(tmp_path), n)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    names = os.listdir(tmp_path)
    assert len(names) == 151
    assert all(PlanCache(tmp_path).load(name.removesuffix(".json")) == REPORT for name in names)


def test_the_default_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("TFACCEL_CACHE_DIR", str(tmp_path))
    assert default_directory() == tmp_path
    monkeypatch.delenv("TFACCEL_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "tfaccel"


def make_workload(units=4, optimizer="adam", loss="mse", batch=8, activation="relu"):
    layers = [keras.layers.Dense(units, activation=activation), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(optimizer, loss)
    dataset = tf.data.Dataset.from_tensors((np.zeros((batch, 3)), np.zeros((batch, 1))))
    return Workload(model, (next(iter(dataset)),), dataset.element_spec)


def key(workload, names=("xla",), tolerance=None):
    return workload_key(workload, names, tolerance)


def test_what_the_losses_count_decides():
    """A plan of the cache runs from the first step on, so that its key must tell steps apart."""
    plain, weighted, again = make_workload(), make_workload(), make_workload()
    weighted.model.compile("adam", "mse", loss_weights=[0.5])
    again.model.compile("adam", "mse", loss_weights=[0.5])
    assert key(plain) != key(weighted) == key(again)


def test_the_same_script_finds_its_plan_again():
    first = make_workload()
    again = make_workload(optimizer=keras.optimizers.Adam(learning_rate=0.5))
    again.model.set_weights([w + 1 for w in again.model.get_weights()])
    assert first.model.layers[0].name != again.model.layers[0].name
    assert key(first) == key(again)


@pytest.mark.parametrize(
    "change",
    [
        {"units": 5},
        {"optimizer": "sgd"},
        {"optimizer": keras.optimizers.Adam(amsgrad=True)},
        {"loss": "mae"},
        {"batch": 9},
        {"activation": "tanh"},
    ],
    ids=["units", "optimizer", "amsgrad", "loss", "batch", "activation"],
)
def test_another_workload_has_another_key(change):
    assert key(make_workload()) != key(make_workload(**change))


def test_what_the_user_allowed_is_part_of_the_key():
    workload = make_workload()
    assert key(workload) != key(workload, names=("xla", "fused_norm"))
    assert key(workload) != key(workload, tolerance=0.1)


def test_connections_are_part_of_the_key():
    def branched(swap):
        x = keras.Input((3,))
        a, b = keras.layers.Dense(3)(x), keras.layers.Dense(3, activation="tanh")(x)
        c = keras.layers.Subtract()([b, a] if swap else [a, b])
        model = keras.Model(x, c)
        model.compile("adam", "mse")
        return Workload(model, (tf.zeros((2, 3)),), None)

    assert key(branched(False)) != key(branched(True))
