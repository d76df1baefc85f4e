"""Layout: calls and tapes of the user's own, whole networks, fits."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from early import built_early
from laid_out_models import (
    FIRST,
    SHAPE,
    Residual,
    Run,
    alike,
    as_written,
    assert_close,
    both_ways,
    conv,
    functional,
    images,
    laid_out,
    shake,
    to_first,
    to_last,
    unet,
)

import tfaccel
from tfaccel.passes import FusedOptimizer, Layout

layers = keras.layers


def test_a_call_of_the_users_own(rng, float64):
    model = Residual()
    with as_written(model):
        model(images(rng, *SHAPE))
    shake(model, rng)
    written, laid = both_ways(model, rng)
    assert_close(laid, written, 1e-11)


class Penalized(keras.Model):
    """As a critic is trained with a penalty on its gradient at a generator's output."""

    def __init__(self):
        super().__init__()
        self.generator = functional(SHAPE, lambda x: conv(3)(layers.ReLU()(conv()(x))))
        self.critic = functional(SHAPE, lambda x: conv(2)(conv(activation="tanh")(x)))

    def call(self, x):
        made = self.generator(x)
        again = self.critic(made)
        with tf.GradientTape() as tape:
            tape.watch(made)
            verdict = tf.reduce_sum(tf.sin(self.critic(made)))
        return [again, tape.gradient(verdict, made, unconnected_gradients="zero")]


class Saliency(keras.Model):
    """A gradient with respect to an output of a Functional model that other layers read."""

    def __init__(self):
        super().__init__()
        self.core = functional(SHAPE, lambda x: self.both(conv()(x)))

    def both(self, features):
        return [features, layers.Dense(2)(layers.Flatten(**FIRST)(conv(2)(features)))]

    def call(self, x):
        with tf.GradientTape() as tape:
            features, logits = self.core(x)
            value = tf.reduce_sum(tf.square(logits))
        return [logits, tape.gradient(value, features, unconnected_gradients="zero")]


class Tap(layers.Layer):
    """Passes its input on, and remembers it."""

    def call(self, x):
        self.seen = x
        return x


class Tapped(keras.Model):
    """A gradient with respect to a tensor that a layer in a Functional model has seen."""

    def __init__(self):
        super().__init__()
        self.tap = Tap()
        self.core = functional(SHAPE, lambda x: self.chain(conv()(x)))

    def chain(self, x):
        first = conv(2)(x)
        return layers.Multiply()([first, conv(2)(self.tap(x))])

    def call(self, x):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(tf.square(self.core(x)))
        return tape.gradient(value, self.tap.seen, unconnected_gradients="zero")


class Watcher(layers.Layer):
    """A layer of a Functional model with a tape inside."""

    def __init__(self):
        super().__init__()
        self.inner = conv(4)

    def call(self, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(tf.square(self.inner(x)))
        return tape.gradient(value, x, unconnected_gradients="zero")


def watcher_inside():
    return functional(SHAPE, lambda x: conv()(Watcher()(conv()(x))))


def rematerialized():
    def body(x):
        with keras.RematScope(mode="full"):
            first = conv()
        x = conv()(x)
        return layers.Add()([first(x), conv()(x)])

    return functional(SHAPE, body)


def rematerialized_input():
    def body(x):
        with keras.RematScope(mode="full"):
            first = conv()
        return layers.Add()([first(x), conv()(x)])

    return functional(SHAPE, body)


@pytest.mark.parametrize(
    "make",
    [
        Penalized,
        pytest.param(Saliency, marks=pytest.mark.slow),
        Tapped,
        watcher_inside,
        pytest.param(rematerialized, marks=pytest.mark.slow),
        rematerialized_input,
    ],
    ids=lambda make: make.__name__,
)
def test_gradients_with_respect_to_anything(make, rng, float64):
    """Inner tapes see what they would see without the pass."""
    model = make()
    model.build(SHAPE)
    shake(model, rng)
    written, laid = both_ways(model, rng)
    assert_close(laid, written, 1e-10)
    assert all(np.any(array) for array in written if array.ndim > 1)


def resnet50(first):
    keras.config.set_image_data_format("channels_first" if first else "channels_last")
    try:
        shape = (3, 40, 40) if first else (40, 40, 3)
        core = keras.applications.ResNet50(weights=None, input_shape=shape, include_top=False)
        x = layers.GlobalAveragePooling2D()(core.output)
    finally:
        keras.config.set_image_data_format("channels_last")
    return keras.Model(core.input, layers.Dense(7)(x))


TWINS = [unet, pytest.param(resnet50, marks=pytest.mark.slow)]


@pytest.mark.parametrize("make", TWINS)
@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_networks_are_their_channels_last_twins(make, training, rng):
    first, last = make(True), make(False)
    assert [v.path.split("/")[-1] for v in first.weights] == [
        v.path.split("/")[-1] for v in last.weights
    ]
    last.set_weights(first.get_weights())
    if training and make is unet:  # it draws other masks where the channels are last
        for model in (first, last):
            for layer in model.layers:
                if isinstance(layer, layers.SpatialDropout2D):
                    layer.rate = 0.0
    x = images(rng, 3, *first.input_shape[1:])
    y, total, dx, *others = run_twin(first, x, laid_out(first), training)
    twin_y, twin_total, twin_dx, *twin_others = run_twin(last, to_last(x), None, training)
    assert_close([y, total, dx], [to_first(twin_y), twin_total, to_first(twin_dx)])
    assert_close(others, twin_others)


def run_twin(model, x, context, training):
    results = Run(model, x.shape, context=context, training=training, weigh=alike)(x)
    statistics = [v.numpy() for v in model.non_trainable_variables if v.dtype == "float32"]
    return [*results, *statistics]


def small_model(first, seed=3):
    keras.utils.set_random_seed(seed)
    options = {"data_format": "channels_first" if first else "channels_last"}
    axis = 1 if first else -1
    x = inputs = keras.Input((2, 8, 9) if first else (8, 9, 2))
    x = layers.Conv2D(4, 3, use_bias=False, **options)(x)
    x = layers.ReLU()(layers.BatchNormalization(axis=axis)(x))
    x = layers.Flatten(**options)(layers.MaxPooling2D(2, **options)(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, metrics=["accuracy"])
    return model


def test_a_channels_first_model_trains_like_its_channels_last_twin(rng):
    """Everywhere, also on a CPU without channels_first convolutions."""
    x, y = images(rng, 40, 2, 8, 9), rng.integers(0, 3, 40)
    first, last = small_model(True), small_model(False)
    plan = [Layout(), FusedOptimizer()]
    accel = tfaccel.AccelCallback(plan, verbose=0)
    options = {"batch_size": 8, "epochs": 3, "shuffle": False, "verbose": 0}
    history = first.fit(x, y, callbacks=[accel], **options).history
    expected = built_early(last, y[:1]).fit(to_last(x), y, **options).history
    assert accel.plan.names == ("layout", "fused_optimizer")
    for key, values in expected.items():
        np.testing.assert_allclose(history[key], values, rtol=1e-4)
    for a, b in zip(first.weights, last.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


class OwnStep(keras.Model):
    """A train_step of the user's own around a channels_first model."""

    def train_step(self, data):
        x, _ = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(x, training=True)))
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {"own": loss}


def test_a_train_step_of_the_users_own(rng):
    inputs = keras.Input(SHAPE[1:])
    model = OwnStep(inputs, conv()(layers.ReLU()(conv()(inputs))))
    model.compile("sgd")
    x = images(rng, 16, *SHAPE[1:])
    history = model.fit(
        x, np.zeros(16), epochs=3, verbose=0, callbacks=[tfaccel.AccelCallback([Layout()])]
    ).history
    assert history["own"][-1] < history["own"][0]
