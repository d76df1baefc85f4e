"""Fixtures that every test may use."""

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock
from tensorflow.python.util import tf_stack

from tfaccel.training import phases

# What TensorFlow made on import need not be looked through at each collection, and tracing
# makes more objects in a moment than Python expects of a program.
gc.collect()
gc.freeze()
gc.set_threshold(10_000, 20, 20)

# TensorFlow keeps for each op of a graph where in Python it was made, for the text of errors. To
# walk all frames of pytest, Keras and tfaccel is a sixth of what a trace takes; one place will do.
PLACE = tf_stack.extract_stack()
tf_stack.extract_stack = lambda stacklevel=1: PLACE


@pytest.fixture(autouse=True, scope="module")
def _left_behind():
    """Frees what a file's tests have left, and looks at the rest no more.

    Left alone, graphs pile up till a collection, in whatever test it comes, takes a minute.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _strict_phases(monkeypatch):
    """What a training would survive is an error in tests."""
    monkeypatch.setattr(phases, "RAISES", True)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261120)


@pytest.fixture
def unoptimised():
    """Graphs that run once or twice are run as they are: TensorFlow's look at them takes longer.

    How TensorFlow rewrites the graphs of passes is tested by the laws, and wherever models are fit.
    """
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    restored = {"disable_meta_optimizer": False} | before
    tf.config.optimizer.set_experimental_options(restored)


@pytest.fixture(autouse=True)
def _own_world(tmp_path, monkeypatch):
    """Each test has its own plan cache, seed and Keras session."""
    monkeypatch.setenv("TFACCEL_CACHE_DIR", str(tmp_path / "plans"))
    # Collecting at each test would take longer than the tests, some thousand tests later.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    yield
    keras.config.set_dtype_policy("float32")
