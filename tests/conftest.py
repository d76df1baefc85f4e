"""Fixtures that every test may use. Nothing here needs a network or a GPU."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
from clocks import FakeClock

# clear_session collects garbage; what TensorFlow made on import need not be looked
# through each time, a quarter of a second a test.
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
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    yield
    keras.config.set_dtype_policy("float32")
