"""A model to bench, and its data."""

import keras

from tfaccel.cli.inputs.feeds import random_feed
from tfaccel.cli.inputs.models import Chosen


def make(*body, shape=(6,), loss="mse", **arguments):
    model = keras.Sequential([keras.Input(shape, **arguments), *body], name="small")
    model.compile("adam", loss)
    return model


def feed_for(model, batch_size=4, input_shape=None):
    return random_feed(Chosen("m", model, input_shape), batch_size)
