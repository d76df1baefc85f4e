"""Several steps in one call, and measured kernels, where replicas train together."""

import keras
import numpy as np
import pytest

import tfaccel
from tfaccel.passes import Kernels, StepBatching

layers = keras.layers


@pytest.fixture(scope="module")
def mirrored():
    return tfaccel.AccelStrategy("mirrored")


def images(samples=72):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, samples)
    x = rng.normal(size=(samples, 8, 8, 3)) + labels[:, None, None, None] * 0.5
    return x.astype("float32"), labels


def cnn(strategy, steps_per_execution=1):
    keras.utils.set_random_seed(7)
    with strategy.scope():
        body = [
            layers.Conv2D(4, 3),
            layers.BatchNormalization(synchronized=True, momentum=0.5),
            layers.Flatten(),
            layers.Dense(3),
        ]
        model = keras.Sequential([keras.Input((8, 8, 3)), *body])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(
            keras.optimizers.SGD(0.05, momentum=0.9),
            loss,
            metrics=["accuracy"],
            steps_per_execution=steps_per_execution,
        )
    return model


def fit(model, *callbacks):
    """Epochs of five steps, which no number of steps in a call divides."""
    x, y = images()
    history = model.fit(
        x,
        y,
        batch_size=16,
        epochs=2,
        shuffle=False,
        verbose=0,
        validation_data=(x[:32], y[:32]),
        callbacks=[*callbacks],
    )
    return history.history, [copy.numpy() for v in model.variables for copy in v.value.values]


@pytest.fixture(scope="module")
def one_by_one(mirrored):
    """The training by a call of Keras's for each step; its losses are those of one device."""
    found = fit(cnn(mirrored))
    alone = cnn(tfaccel.AccelStrategy("default"))
    x, y = images()
    history = alone.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history
    np.testing.assert_allclose(found[0]["loss"], history["loss"], rtol=1e-4)
    return found


@pytest.mark.parametrize("steps", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_steps_per_execution(mirrored, one_by_one, steps):
    """TensorFlow by itself feeds nothing to collective operations in a loop, and fails."""
    history, weights = fit(cnn(mirrored, steps))
    assert history == one_by_one[0]
    for a, b in zip(weights, one_by_one[1], strict=True):
        np.testing.assert_array_equal(a, b)


class Losses(keras.callbacks.Callback):
    """What is shown after each batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(logs["loss"])


@pytest.mark.parametrize("steps_per_execution", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_step_batching(mirrored, one_by_one, steps_per_execution):
    accel = tfaccel.AccelCallback([StepBatching(3, allow_batch_hooks=True)], verbose=0)
    losses = Losses()
    history, weights = fit(cnn(mirrored, steps_per_execution), accel, losses)
    assert accel.plan.names == ("step_batching",)
    assert history == one_by_one[0]
    assert len(losses.seen) == 2 * -(-5 // steps_per_execution)
    for a, b in zip(weights, one_by_one[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_kernels_that_were_measured_for_a_replica(mirrored, one_by_one, monkeypatch):
    """As many samples as a replica has; whatever wins computes the same."""
    seen = []
    own = Kernels.selection

    def selection(self, context):
        seen.append(own(self, context))
        return seen[-1]

    monkeypatch.setattr(Kernels, "selection", selection)
    accel = tfaccel.AccelCallback([Kernels(exhaustive=True)], verbose=0)
    history, weights = fit(cnn(mirrored), accel)
    assert accel.plan.names == ("kernels",)
    assert {spec.x[0] for spec in seen[0].rankings} <= {8, None}
    assert seen[0].rankings
    np.testing.assert_allclose(history["loss"], one_by_one[0]["loss"], rtol=1e-4)
    for first, second in zip(weights[::2], weights[1::2], strict=True):
        np.testing.assert_array_equal(first, second)
