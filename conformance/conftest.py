"""Stands in for the `conftest.py` of Keras's repository, which its wheel leaves out.

Keras's tests do `from conftest import skip_if_backend`; run.py puts this folder on
their path. Written anew, for the TensorFlow backend only.
"""

import contextlib

# Where torch and TensorFlow are both used, torch must be imported first.
with contextlib.suppress(ImportError):
    import torch  # noqa: F401

import keras
import pytest
import tensorflow as tf


def pytest_configure(config):
    for name in ("requires_trainable_backend", "multi_device"):
        config.addinivalue_line("markers", f"{name}: a marker of Keras's tests")
    # Keras's tests compare results more closely than TF32 allows.
    tf.config.experimental.enable_tensor_float_32_execution(False)


def pytest_collection_modifyitems(items):
    # As in Keras's own runs, where only JAX and torch take part in these.
    for item in items:
        if item.get_closest_marker("multi_device"):
            item.add_marker(pytest.mark.skip(reason="not for the TensorFlow backend"))


def skip_if_backend(backend, reason):
    """Marks a test as not meant for `backend`."""
    return pytest.mark.skipif(keras.backend.backend() == backend, reason=reason)
