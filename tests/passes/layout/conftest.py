"""Layers in float64."""

import keras
import pytest


@pytest.fixture
def float64():
    keras.config.set_dtype_policy("float64")
