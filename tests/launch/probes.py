"""A small model, and what is noted of a fit."""

import keras
import numpy as np

from tfaccel.launch.closing import Fit

X, Y = np.ones((8, 3), "float32"), np.ones((8, 1), "float32")


def make(kind=keras.Sequential):
    model = kind([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def fit(**given):
    values = {"model": "Sequential", "parameters": 1234, "steps": 10, "plan": "xla"}
    return Fit(**{**values, "speedup": 1.25, "tuning_seconds": 0.5, **given})
