"""The pass `kernels`: layers are those of Keras by any kernel."""

import warnings

import catalogue
import keras
import numpy as np
import pytest
import tensorflow as tf
from produced import products, workload_of

import tfaccel
from tfaccel import ops
from tfaccel.autotune.comparison.step_recorder import StepRecorder
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.measure import numerics
from tfaccel.ops.kernels import KERNELS, reference
from tfaccel.ops.kernels._opencl import missing
from tfaccel.passes import Kernels
from tfaccel.passes.kernels._selection import Selection
from tfaccel.steps.snapshot import Snapshot

layers = keras.layers


class Forced(Selection):
    """Every product by one kernel, where that serves."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.used = set()

    def wanted(self, layer, specs, compiled=True):
        return True

    def choose(self, spec, compiled=True):
        for kernel in KERNELS:
            same = (kernel.op, kernel.direction, kernel.name) == (
                spec.op,
                spec.direction,
                self.name,
            )
            if same and kernel.unsupported(spec) is None:
                self.used.add((spec.op, spec.direction))
                return kernel
        return reference(spec.op, spec.direction)


@pytest.fixture(scope="module")
def untouched():
    """A workload with products of every kind, its probe, and what that saw of Keras's own step."""
    keras.utils.set_random_seed(1)
    workload = workload_of(products())
    context = StepContext(workload)
    probe = StepRecorder(workload, Snapshot.of(workload), context.prepared)
    return context, probe, probe.observe(Plan())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("tensorflow", 15),
        ("im2col", 6),
        ("split_groups", 3),
        ("fused_offsets", 2),
        ("xla", 12),
        # What they compute is tested in test_kernels.py; by im2col all convolutions are met.
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in (("matmul_1x1", 6), ("shifted", 6), ("flipped", 1))
        ),
        pytest.param(
            *("opencl", 12),
            marks=pytest.mark.skipif(missing() is not None, reason=str(missing())),
        ),
    ],
)
def test_layers_are_those_of_keras_by_any_kernel(name, count, untouched):
    """Losses, gradients and updates against Keras's own, for each kernel wherever it serves."""
    context, probe, expected = untouched
    forced = context.prepared["kernels"] = Forced(name)
    found = numerics.compare(expected, probe.observe(Plan((Kernels(),)), expected))
    assert found.gradient < 1e-5 and found.loss < 1e-6 and found.update < 1e-6, found
    assert len(forced.used) == count, forced.used


@pytest.mark.parametrize(
    "make",
    [
        lambda **where: layers.Conv2D(5, 3, strides=2, padding="same", activation="relu", **where),
        lambda **where: layers.DepthwiseConv2D(3, depth_multiplier=2, **where),
        lambda **where: layers.SeparableConv2D(5, 2, padding="same", use_bias=False, **where),
    ],
)
def test_channels_first(make):
    """Against the same layer with its channels last: TensorFlow has no others on a CPU."""
    last, first = (make(data_format=f"channels_{where}") for where in ("last", "first"))
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 4)).astype("float32")
    expected = last(x)
    first.build((None, 4, 7, 6))
    first.set_weights(last.get_weights())
    model = keras.Sequential([first])
    context = StepContext(Workload(model))
    context.prepared["kernels"] = Forced("im2col")
    with Kernels().applied(context):
        found = first(np.moveaxis(x, -1, 1))
    np.testing.assert_allclose(np.moveaxis(found, 1, -1), expected, rtol=1e-4, atol=1e-5)


def test_a_fit_is_the_same_fit(measured):
    measured.winner = "im2col"

    (fit,) = (fit for fit in catalogue.FITS if fit.name == "images_from_tf_data")
    accel = tfaccel.AccelCallback([Kernels()])
    _, logs = catalogue.results(fit, accel)
    for log, stock in zip(logs, catalogue.stock_results(fit)[1], strict=True):
        np.testing.assert_allclose(log, stock, rtol=1e-4)
    assert accel.plan == Plan((Kernels(),))
    assert {spec.x[0] for spec in measured.asked} == {8}  # the batch's size is known


class NoCall(keras.Model):
    """Two parts, a step of its own and, as many have that are written like this, no `call`."""

    def __init__(self):
        super().__init__()
        self.encoder = keras.Sequential([keras.Input((6,)), layers.Dense(4, name="encoder")])
        self.decoder = keras.Sequential([keras.Input((4,)), layers.Dense(6, name="decoder")])

    def train_step(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.decoder(self.encoder(x)) - x))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


def test_products_of_a_train_step_of_the_users_own_are_seen(measured):
    def losses(callbacks):
        keras.utils.set_random_seed(2)
        model = NoCall()
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
        if not callbacks:
            model.optimizer.build(model.trainable_variables)
        x = np.random.default_rng(0).normal(size=(12, 6)).astype("float32")
        fitted = model.fit(x, batch_size=4, epochs=2, verbose=0, callbacks=callbacks)
        return fitted.history["loss"]

    accel = tfaccel.AccelCallback(["kernels"], verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_kernels = losses([accel])
    assert accel.plan.names == ("kernels",)
    assert {spec.w for spec in measured.asked} == {(6, 4), (4, 6)}
    np.testing.assert_allclose(with_kernels, losses([]), rtol=1e-5)


def test_a_kernel_that_fails_leaves_the_training_as_it_is(measured):
    measured.winner = "broken"

    @ops.register_kernel("matmul", name="broken")
    def broken(spec, x, w):
        raise ValueError("it broke")

    try:
        model = keras.Sequential([layers.Dense(4), layers.Dense(1)])
        model.compile("sgd", "mse")
        x = np.ones((32, 3), "float32")
        with pytest.warns(RuntimeWarning, match="it broke"):
            accel = tfaccel.AccelCallback(["kernels"])
            model.fit(x, x[:, :1], batch_size=8, verbose=0, callbacks=[accel])
        assert accel.plan == Plan()
    finally:
        ops.unregister_kernel("matmul", "broken")
