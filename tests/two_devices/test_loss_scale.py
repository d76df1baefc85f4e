"""Replicas skip a step together when the gradients of one overflow."""

import keras
import numpy as np
import pytest

import tfaccel


# Of the first replica Keras asks, too.
@pytest.mark.parametrize("sample", [pytest.param(1, marks=pytest.mark.slow), 13])
def test_an_overflow_on_one_replica_is_one_on_all(sample):
    """Keras asks the first replica alone, and applies what overflowed on the second."""
    with tfaccel.AccelStrategy("mirrored").scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
        model.compile(optimizer, "mse")
    before = model.get_weights()
    x = np.ones((16, 4), "float32")
    x[sample] = 1e30
    model.fit(x, x[:, :1], batch_size=16, shuffle=False, verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert float(optimizer.dynamic_scale.numpy()) == optimizer.initial_scale / 2
    assert int(optimizer.iterations.numpy()) == 0
    model.fit(np.ones_like(x), x[:, :1] * 0, batch_size=16, shuffle=False, verbose=0)
    assert int(optimizer.iterations.numpy()) == 1
