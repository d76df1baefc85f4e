"""Steps that run Python, assign what can't be put back, or build what is theirs late."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from nets import make_data, make_net

import tfaccel
from tfaccel.core.tracing import UntraceableError, trace_step
from tfaccel.steps.resources import side_effects, stateful_random_ops

layers = keras.layers


class Collect(keras.metrics.Metric):
    """Counts, by Python, the samples that it is shown."""

    def __init__(self):
        super().__init__(name="collect")
        self.seen = []
        self.total = self.add_weight(shape=(), initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        def note(values):
            self.seen.append(len(values))
            return np.float32(len(values))

        # In a function of its own: nested ones are looked into.
        count = tf.function(lambda values: tf.numpy_function(note, [values], tf.float32))
        self.total.assign_add(tf.reshape(count(y_pred), ()))

    def result(self):
        return self.total


@pytest.mark.parametrize(
    "plan", ["auto", pytest.param(["fused_activation"], marks=pytest.mark.slow)]
)
def test_python_in_a_step_runs_once_a_batch(plan):
    model, metric, data = make_net(), Collect(), make_data()
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=[metric])
    settings = {"tuning_share": None, "cache_dir": False, "verbose": 0}
    accel = tfaccel.AccelCallback(plan, includes=["fused_activation"], **settings)
    again = (data["x"], data["y"])
    model.fit(**data, epochs=3, verbose=0, callbacks=[accel], validation_data=again)
    assert sum(metric.seen) == 3 * 2 * len(data["x"])
    if plan == "auto":
        assert "runs Python code" in accel.report.note
    else:
        assert list(accel.plan.names) == plan


def test_tune_repeats_no_step_that_runs_python():
    model, metric, data = make_net(), Collect(), make_data()
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=[metric])
    dataset = tf.data.Dataset.from_tensor_slices((data["x"], data["y"])).batch(8)
    report = tfaccel.tune(model, dataset, max_tuning_seconds=5, cache_dir=False, verbose=0)
    assert report.plan.is_baseline
    assert "runs Python code" in report.note
    assert not metric.seen


def traced(function):
    """The graph of a branch in which the function is called, by way of one of its own."""

    def branch():
        tf.function(function, autograph=False)()
        return tf.constant(0)

    def step(going):
        return tf.cond(going, branch, lambda: tf.constant(0))

    made = tf.function(step, autograph=False)
    return made.get_concrete_function(tf.TensorSpec([], tf.bool)).graph


def test_what_cannot_be_undone_is_seen_in_nested_functions():
    batches = iter(tf.data.Dataset.range(9))
    queue = tf.queue.FIFOQueue(2, [tf.float32])
    fixed = tf.lookup.KeyValueTensorInitializer([1], [2])
    fixed = tf.lookup.StaticHashTable(fixed, default_value=0)
    assert "an iterator" in side_effects(traced(lambda: next(batches)))[0]
    assert "a queue" in side_effects(traced(lambda: queue.dequeue()))[0]
    assert side_effects(traced(lambda: fixed.lookup(tf.constant(1)))) == ()
    assert stateful_random_ops(traced(lambda: tf.random.uniform([]))) == ("RandomUniform",)
    assert stateful_random_ops(traced(lambda: keras.random.uniform([2], seed=3))) == ()


class Distilled(keras.Model):
    """A student that learns from a teacher, too."""

    def __init__(self):
        super().__init__()
        self.teacher, self.student = make_net(6), make_net(3)
        self.teacher.trainable = False
        self.built = True

    def build(self, shape=None):
        self.built = True

    def call(self, x):
        return self.student(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        taught = keras.ops.mean(keras.ops.square(y_pred - self.teacher(x)))
        return taught + keras.ops.mean(keras.ops.square(y_pred - y))


def distilled(callbacks=()):
    keras.utils.set_random_seed(2)
    model = Distilled()
    model.compile("adam")
    return model.fit(**make_data(), verbose=0, callbacks=list(callbacks)).history["loss"]


@pytest.mark.parametrize(
    "plan",
    [
        ["fused_optimizer"],
        pytest.param(["kernels"], marks=pytest.mark.slow),
        pytest.param(["fused_optimizer", "kernels"], marks=pytest.mark.slow),
    ],
)
def test_an_optimizer_that_is_not_built_yet_is_built_by_the_step(plan):
    accel = tfaccel.AccelCallback(plan, cache_dir=False, verbose=0)
    np.testing.assert_allclose(distilled([accel]), distilled(), rtol=1e-5)
    assert list(accel.plan.names) == plan


@pytest.mark.parametrize("optimizer", ["scaled", pytest.param("adam", marks=pytest.mark.slow)])
def test_a_trace_that_fails_leaves_nothing_half_built(optimizer):
    adam = keras.optimizers.Adam()
    model = Distilled()
    scaled = keras.optimizers.LossScaleOptimizer(adam) if optimizer == "scaled" else adam
    model.compile(scaled, metrics=["mae"])
    batch = (np.ones((8, 4), "float32"), np.ones((8, 1), "float32"))
    with pytest.raises(UntraceableError):
        trace_step(model, batch)
    assert not model.optimizer.built
    assert not adam.built
    assert not hasattr(adam, "_momentums")
    model.fit(*batch, verbose=0)
    assert int(adam.iterations) == 1


class Starting(keras.optimizers.SGD):
    """Its slots begin as the weights, where `build` is no part of a trace."""

    def build(self, variables):
        if not self.built:
            super().build(variables)
            for slot, variable in zip(self.momentums, variables, strict=True):
                slot.assign(variable)


OPTIMIZERS = {
    "theirs": lambda: Starting(0.01, momentum=0.9),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(Starting(0.01, momentum=0.9)),
}
if hasattr(keras.optimizers, "ScheduleFreeAdamW"):
    OPTIMIZERS["keras"] = lambda: keras.optimizers.ScheduleFreeAdamW(0.01)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=() if k == "scaled" else pytest.mark.slow) for k in OPTIMIZERS],
)
def test_slots_that_begin_as_the_weights_begin_as_in_keras_s_trace(kind):
    def losses(callbacks):
        keras.utils.set_random_seed(3)
        model = make_net()
        model.compile(OPTIMIZERS[kind](), "mse")
        return model.fit(**make_data(), verbose=0, callbacks=callbacks).history["loss"]

    accel = tfaccel.AccelCallback(["fused_activation"], verbose=0)
    np.testing.assert_allclose(losses([accel]), losses([]), rtol=1e-5)
    assert not accel.plan.is_baseline


class Elsewhere(keras.Sequential):
    """Trains by an optimizer that is no attribute of its own; compile makes one that idles."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = keras.ops.mean(keras.ops.square(self(x) - y))
        used = self.held["used"]
        used.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {"loss": loss}


@pytest.mark.parametrize(
    "plan", ["auto", pytest.param(["fused_activation"], marks=pytest.mark.slow)]
)
def test_an_optimizer_that_the_step_does_not_use_stays_unbuilt(plan):
    model = Elsewhere(make_net().layers)
    model.held = {"used": keras.optimizers.SGD(0.01, momentum=0.9)}
    model.compile()
    accel = tfaccel.AccelCallback(
        plan, includes=["fused_activation"], tuning_share=None, cache_dir=False, verbose=0
    )
    model.fit(**make_data(), verbose=0, callbacks=[accel])
    assert not model.optimizer.built
    assert model.held["used"].built
