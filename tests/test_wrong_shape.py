"""An AcceleratedModel that is handed inputs that do not fit the model."""

import keras
import numpy as np
import pytest

import tfaccel

X = np.ones((8, 4), "float32")


@pytest.fixture(scope="module")
def model():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="relu")])


@pytest.mark.parametrize("plan", ["baseline", ["frozen_weights"]])
def test_a_call_says_what_predict_says(model, plan):
    fast = tfaccel.accelerate(model, X, plan, verbose=0, cache_dir=False)
    fast(X), fast(X[:3])
    before = fast.plan
    for ask in (fast.predict, fast):
        with pytest.raises(ValueError, match="expected axis -1 of input shape to have value 4"):
            ask(np.ones((8, 5), "float32"))
    assert fast.plan == before
    np.testing.assert_allclose(fast(X), model(X), rtol=1e-6)
