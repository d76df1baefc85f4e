"""A fit that ends by an exception in a callback: nothing of its data is held afterwards."""

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock

import tfaccel

# A shape that no tensor of anything else has.
SHAPE = (7, 11)


class Breaks(keras.callbacks.Callback):
    def __init__(self, epoch, batch):
        super().__init__()
        self.place = epoch, batch
        self.epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.place:
            raise ZeroDivisionError("in a callback")


def kept_batches():
    gc.collect()
    eager = type(tf.constant(0))
    return [x for x in gc.get_objects() if type(x) is eager and tuple(x.shape) == SHAPE]


def fit(accel, *callbacks):
    model = keras.Sequential([keras.Input(SHAPE[1:]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    rows = np.ones((10 * SHAPE[0], SHAPE[1]), "float32")
    data = tf.data.Dataset.from_tensor_slices((rows, rows[:, :1])).batch(SHAPE[0])
    model.fit(data, epochs=3, verbose=0, callbacks=[*callbacks, accel])


def to_be_chosen():
    return tfaccel.AccelCallback(cache_dir=False, verbose=0, clock=FakeClock(step=0.001))


def to_be_searched():
    return tfaccel.AccelCallback(
        includes=["fused_optimizer"], tuning_share=None, cache_dir=False, verbose=0
    )


def given():
    return tfaccel.AccelCallback(["fused_optimizer"], cache_dir=False, verbose=0)


@pytest.mark.parametrize("make", [to_be_chosen, to_be_searched, given])
@pytest.mark.parametrize("place", [(0, 0), (0, 2), (0, 4), (2, 1)], ids=str)
def test_nothing_is_held(make, place):
    accel, before = make(), len(kept_batches())
    with pytest.raises(ZeroDivisionError):
        fit(accel, Breaks(*place))
    assert len(kept_batches()) == before
    assert not accel.session.holds_data


@pytest.mark.parametrize("make", [to_be_searched, given])
def test_nor_after_a_fit_that_went_well(make):
    accel, before = make(), len(kept_batches())
    fit(accel)
    assert len(kept_batches()) == before
