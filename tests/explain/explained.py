"""Models, and the rows that explain has of them."""

import keras

from tfaccel.explain.api import explain
from tfaccel.system.device import Device

layers = keras.layers
CPU = Device("CPU", "plain CPU")


def make(*body, shape=(8, 8, 4), optimizer="adam", **compile_arguments):
    model = keras.Sequential([keras.Input(shape), *body], name="model")
    model.compile(optimizer, "mse", **compile_arguments)
    return model


def rows(model, plan=None, device=CPU):
    return {row.layer: row for row in explain(model, plan, device=device).rows}


def row(layer, device=CPU, plan=None, shape=(8, 8, 4)):
    """The row of a layer that is not the model's last."""
    model = make(layer, layers.Flatten(name="flat"), layers.Dense(1, name="last"), shape=shape)
    return rows(model, plan, device)[layer.name]
