"""Fits of every kind, with several steps in a call and without."""

import functools

import keras
import numpy as np
from early import built_early

import tfaccel
from tfaccel.passes import StepBatching

layers = keras.layers
callbacks = keras.callbacks


def make_model(dropout=0.2, **compiling):
    keras.utils.set_random_seed(4)
    body = [layers.Dense(8, activation="relu"), layers.Dropout(dropout), layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *body])
    model.compile(**{"optimizer": "sgd", "loss": "mse", "metrics": ["mae"], **compiling})
    return model


def make_data(rows=75):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(rows, 4)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


def accelerated(steps=4, **settings):
    return tfaccel.AccelCallback(
        [StepBatching(steps, settings.pop("allow_batch_hooks", False))], verbose=0, **settings
    )


class Watching(callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        pass


def state_after(*added, epochs=2, **compiling):
    model = make_model(**compiling)
    if not added:
        built_early(model)
    x, y = make_data()
    history = model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, callbacks=list(added))
    values = [v.numpy().tolist() for v in [*model.variables, *model.optimizer.variables]]
    return values, history.history


@functools.cache
def stock_after(epochs=2):
    return state_after(epochs=epochs)
