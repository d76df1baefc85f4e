"""What `explain` advises of a Dense layer that holds most of the model."""

import keras
import pytest

from tfaccel.explain.facts import advice
from tfaccel.system.device import Device

layers = keras.layers
CPU = Device("CPU", "some CPU")
IMAGE = (32, 32, 1)


def model_of(*parts):
    return keras.Sequential([*parts, layers.Dense(1000)])


@pytest.mark.parametrize(
    ("parts", "flattened"),
    [
        ([keras.Input((1024,))], False),
        ([keras.Input((1024,)), layers.ReLU()], False),
        ([keras.Input(IMAGE), layers.Flatten()], True),
        ([keras.Input(IMAGE), layers.Flatten(), layers.Dropout(0.1), layers.ReLU()], True),
        ([keras.Input(IMAGE), layers.Flatten(), layers.Dense(1024, name="before")], False),
        ([keras.Input((1024,)), layers.Reshape((1024,))], False),
    ],
)
def test_pooling_is_advised_in_place_of_a_flatten_alone(parts, flattened):
    model = model_of(*parts)
    (said,) = advice(model.layers[-1], CPU, model.layers[-1].count_params())
    assert ("Flatten" in said) is flattened
    assert ("units" in said) is not flattened


def test_a_layer_that_was_never_called_on_symbols_gets_the_general_advice():
    dense = layers.Dense(1000)
    dense.build((None, 1024))
    (said,) = advice(dense, CPU, dense.count_params())
    assert "Flatten" not in said
