"""Models to predict with, of every kind that Keras users have, and inputs for them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tfaccel.measure import racing, timing

layers = keras.layers
COUNT = 12


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and inputs of `COUNT` samples."""

    name: str
    make: Callable[[], tuple[keras.Model, Any]]


@pytest.fixture
def winning(monkeypatch):
    """Whatever is tried and faithful wins."""
    gain = tfaccel.Speedup(2.0, 1.9, 2.1, 6)
    monkeypatch.setattr(timing, "speedup", lambda own, fast: gain)
    monkeypatch.setattr(racing, "CLEARLY_SLOWER", math.inf)


def accelerate(model, x, plan="auto", **arguments):
    arguments = {"verbose": 0, "cache_dir": False, **arguments}
    return tfaccel.accelerate(model, x, plan, **arguments)


def assert_alike(left, right, rtol=1e-5, atol=1e-5):
    tf.nest.assert_same_structure(left, right)
    for a, b in zip(tf.nest.flatten(left), tf.nest.flatten(right), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if a.dtype.kind == "f":
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
        else:
            np.testing.assert_array_equal(a, b)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(COUNT, *shape)).astype("float32")


def spread(model):
    """Gives the model's statistics and biases values that make a difference."""
    rng = np.random.default_rng(3)
    for variable in model.variables:
        if variable.path.rpartition("/")[2] in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.path.rpartition("/")[2] in ("beta", "bias", "moving_mean"):
            variable.assign(rng.uniform(-0.5, 0.5, variable.shape))
    return model


def image_model():
    """Convolutions with batch normalization, followed by several things."""
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Activation("silu")(layers.BatchNormalization(scale=False)(x))
    x = layers.GlobalAveragePooling2D()(layers.Dropout(0.3)(x))
    return spread(keras.Model(inputs, layers.Dense(3)(x)))


def _images():
    return image_model(), numbers(8, 8, 3)


def _sequential_not_built():
    model = keras.Sequential(
        [layers.Dense(8, use_bias=False), layers.BatchNormalization(), layers.Dense(2)]
    )
    return model, numbers(5)


class Block(keras.Model):
    """Layers that only a call joins."""

    def __init__(self):
        super().__init__()
        self.convolution = layers.Conv1D(4, 3)
        self.norm = layers.BatchNormalization()
        self.head = layers.Dense(2)

    def call(self, inputs, training=False):
        x = self.norm(self.convolution(inputs), training=training)
        return {"all": x, "mean": self.head(keras.ops.mean(x, axis=1))}


def _subclassed_not_built():
    return Block(), numbers(9, 3)


def several_inputs_and_outputs():
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    joined = layers.Concatenate()([layers.Dense(5)(a), layers.Dense(5)(b)])
    outputs = {"u": layers.Dense(1)(joined), "v": [layers.Dense(2)(joined), joined]}
    return keras.Model({"a": a, "b": b}, outputs), {"a": numbers(4), "b": numbers(3)}


def _list_of_inputs():
    a, b = keras.Input((4,)), keras.Input((3,))
    return keras.Model([a, b], layers.Dense(2)(layers.Concatenate()([a, b]))), [
        numbers(4),
        numbers(3),
    ]


def _masked_tokens():
    tokens = np.random.default_rng(2).integers(1, 20, size=(COUNT, 9))
    tokens[:, 6:] = 0
    model = keras.Sequential(
        [
            keras.Input((9,), dtype="int32"),
            layers.Embedding(20, 6, mask_zero=True),
            layers.LSTM(5),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    return model, tokens


def _words():
    lookup = layers.StringLookup(vocabulary=["yes", "no", "left"])
    model = keras.Sequential(
        [keras.Input((2,), dtype="string"), lookup, layers.Embedding(5, 3), layers.Flatten()]
    )
    return model, tf.constant([["yes", "no"], ["left", "what"]] * (COUNT // 2))


def _mixed_policy():
    policy = keras.DTypePolicy("mixed_bfloat16")
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, dtype=policy),
            layers.BatchNormalization(dtype=policy),
            layers.Dense(2, dtype="float32"),
        ]
    )
    return spread(model), numbers(6)


def _stateful():
    model = keras.Sequential(
        [keras.Input((5, 3), batch_size=COUNT), layers.GRU(4, stateful=True), layers.Dense(1)]
    )
    return model, numbers(5, 3)


def _preprocessing():
    scale = layers.Normalization(mean=[1.0, 2.0], variance=[4.0, 9.0])
    classes = layers.Lambda(lambda x: tf.argmax(x, axis=-1))
    inputs = keras.Input((2,))
    x = layers.Dense(4, activity_regularizer="l2")(scale(layers.Rescaling(1 / 2)(inputs)))
    return keras.Model(inputs, [x, classes(x)]), numbers(2)


class OwnStep(keras.Model):
    """A predict_step of the user's own."""

    def __init__(self):
        super().__init__()
        self.core = layers.Dense(3)

    def call(self, inputs):
        return self.core(inputs)

    def predict_step(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        logits = self(x)
        return {"logits": logits, "class": tf.argmax(logits, axis=-1)}


def _own_step():
    return OwnStep(), numbers(4)


def _double_precision():
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="float64"),
            layers.Dense(3, dtype="float64"),
            layers.BatchNormalization(dtype="float64"),
        ]
    )
    return spread(model), tf.constant(numbers(4), tf.float64)


def _shared_and_nested():
    """One convolution in two places, and normalizations inside another model."""
    shared = layers.Conv1D(4, 3, padding="same")
    inner = keras.Sequential([keras.Input((6, 4)), layers.BatchNormalization(), layers.ReLU()])
    inputs = keras.Input((6, 4))
    left = inner(shared(inputs))
    right = layers.BatchNormalization()(shared(left))
    return spread(keras.Model(inputs, layers.Add()([left, right]))), numbers(6, 4)


def several_steps_an_execution():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    model.compile("adam", "mse", steps_per_execution=3)
    return model, numbers(4)


class Drawing(layers.Layer):
    """Draws in predictions too, as for Monte Carlo dropout."""

    def __init__(self):
        super().__init__()
        self.drop = layers.Dropout(0.5)

    def call(self, inputs):
        return self.drop(inputs, training=True)


def _random():
    return keras.Sequential([keras.Input((4,)), layers.Dense(8), Drawing()]), numbers(4)


CASES = tuple(
    Case(make.__name__.strip("_"), make)
    for make in (
        _images,
        _sequential_not_built,
        _subclassed_not_built,
        several_inputs_and_outputs,
        _list_of_inputs,
        _masked_tokens,
        _words,
        _mixed_policy,
        _stateful,
        _preprocessing,
        _own_step,
        _double_precision,
        _shared_and_nested,
        several_steps_an_execution,
        _random,
    )
)
