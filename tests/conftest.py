"""Fixtures that every test may use. Nothing here needs a network or a GPU."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Processes of tests share the cores. On tensors as small as theirs threads only wait.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras
import numpy as np
import pytest
from clocks import FakeClock

# What TensorFlow made on import need not be looked through at each collection.
gc.collect()
gc.freeze()


# They take minutes. Begun last, they would have one process wait for the other.
LONGEST = ("test_two_devices.py", "test_multi_worker.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True, scope="module")
def _left_behind():
    """Frees what a file's tests have left, and looks at the rest no more.

    Left alone, graphs pile up till a collection, in whatever test it comes, takes a minute.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261120)


@pytest.fixture(autouse=True)
def _own_world(tmp_path, monkeypatch):
    """Each test has its own plan cache, seed and Keras session."""
    monkeypatch.setenv("TFACCEL_CACHE_DIR", str(tmp_path / "plans"))
    # Collecting at each test would take longer than the tests, some thousand tests later.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    yield
    keras.config.set_dtype_policy("float32")
