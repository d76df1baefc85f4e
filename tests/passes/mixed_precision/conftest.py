"""A model that the pass serves."""

import keras
import numpy as np
import pytest
from in_16_bits import compiled, workload_of

layers = keras.layers


@pytest.fixture(scope="module")
def dense():
    rng = np.random.default_rng(4)
    model = compiled(
        keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(8, activation="relu"),
                layers.Dense(3, activation="softmax"),
            ]
        ),
        loss="sparse_categorical_crossentropy",
    )
    x, y = rng.normal(size=(16, 6)).astype("float32"), rng.integers(0, 3, 16)
    return workload_of(model, x, y)
