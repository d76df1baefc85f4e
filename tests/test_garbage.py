"""The garbage collector rests while `tfaccel run` has TensorFlow imported, and is as before."""

import gc
import weakref

import keras
import numpy as np
import pytest

import tfaccel
from tfaccel.system import garbage
from tfaccel.system.garbage import resting_collector


class Thing:
    pass


@pytest.fixture(autouse=True)
def _as_python_begins():
    """Other tests keep what they have out of the collector's sight."""
    usual = gc.get_threshold()
    gc.unfreeze()
    yield
    gc.enable()
    gc.set_threshold(*usual)
    gc.freeze()


def cycle():
    """A watch of an object that only the collector can free."""
    thing = Thing()
    thing.itself = thing
    return weakref.ref(thing)


def test_nothing_is_collected_inside_and_all_of_it_afterwards():
    gc.set_threshold(50, 2, 2)
    with resting_collector():
        seen = cycle()
        kept = [[] for _ in range(1000)]
        assert seen() is not None
        assert gc.isenabled()
    assert gc.get_threshold() == (50, 2, 2)
    assert any(one is kept[0] for one in gc.get_objects(generation=2))
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert seen() is None


def test_it_is_as_before_after_an_error_and_in_a_block_inside():
    before = gc.get_threshold()
    with pytest.raises(ZeroDivisionError), resting_collector(), resting_collector():
        _ = 1 / 0
    assert gc.get_threshold() == before


def test_a_collector_that_the_program_sets_is_left_alone():
    gc.disable()
    with resting_collector():
        assert gc.get_threshold()[0]
    assert not gc.isenabled()
    gc.enable()
    gc.freeze()
    with resting_collector():
        assert gc.get_threshold()[0]
    assert gc.get_freeze_count()
    gc.unfreeze()
    with resting_collector():
        gc.set_threshold(7, 7, 7)
    assert gc.get_threshold() == (7, 7, 7)
    with resting_collector():
        gc.freeze()
    assert gc.get_freeze_count()


def test_the_first_step_of_a_process_is_one_such_block_and_no_later_one(monkeypatch):
    monkeypatch.setattr(garbage, "RESTED", [])
    thresholds = []

    class Watched(keras.Sequential):
        def train_step(self, data):
            thresholds.append(gc.get_threshold()[0])  # while the step is traced
            return super().train_step(data)

    gc.set_threshold(700, 10, 10)
    for _ in range(2):
        model = Watched([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        accel = tfaccel.AccelCallback(cache_dir=False, verbose=0)
        model.fit(np.ones((64, 3)), np.ones((64, 1)), batch_size=2, verbose=0, callbacks=[accel])
    assert thresholds == [0, 700]
    assert gc.get_threshold() == (700, 10, 10)
