import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.random import seed_generator

import tfaccel
from tfaccel.autotune.comparison.step_recorder import StepRecorder
from tfaccel.autotune.training_trials import TrainingTrials
from tfaccel.core.plan import Plan
from tfaccel.core.workload import Workload
from tfaccel.steps.snapshot import Snapshot, build_all, build_optimizer, known_variables

layers = keras.layers


class Restless(keras.layers.Layer):
    """Changes variables that Keras does not know of, and draws from everybody's generators."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "secret", tf.Variable(0, dtype=tf.int64, trainable=False))

    def call(self, inputs):
        self.secret.assign_add(1)
        noise = tf.random.get_global_generator().normal(tf.shape(inputs))
        return inputs + 0.1 * noise + 0.1 * keras.random.normal(tf.shape(inputs))


def make_workload(layer, optimizer="sgd"):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), layer, layers.Dense(1)])
    model.compile(optimizer, "mse", metrics=["mae"])
    x = np.ones((8, 4), "float32")
    model.fit(x, x[:, :1], verbose=0)
    data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(8)
    return Workload(model, (next(iter(data)),), data.element_spec, 100, 0.1, 0.1)


def test_a_snapshot_restores_bit_for_bit():
    workload = make_workload(layers.BatchNormalization())
    snapshot = Snapshot.of(workload)
    before = [v.numpy().tobytes() for v in known_variables(workload)]
    workload.model.fit(np.ones((64, 4)), np.ones((64, 1)), batch_size=8, verbose=0)
    assert [v.numpy().tobytes() for v in known_variables(workload)] != before
    snapshot.restore()
    assert [v.numpy().tobytes() for v in known_variables(workload)] == before


@pytest.mark.parametrize(
    "dtype", ["float64", "float16", "bfloat16", "int64", "uint32", "bool", "string"]
)
def test_variables_of_any_dtype(dtype):
    value, other = ("a", "b") if dtype == "string" else (1, 0)
    variable = tf.Variable(tf.cast([value], dtype) if dtype != "string" else [value])
    snapshot = Snapshot([variable])
    variable.assign(tf.cast([other], dtype) if dtype != "string" else [other])
    snapshot.restore()
    assert variable.numpy()[0] in (value, b"a")


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.SGD(momentum=0.9),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
    ],
)
def test_trials_restore_what_keras_does_not_know_of(optimizer):
    """A tf.Variable of the user's own, TensorFlow's global generator, Keras's seed generator."""
    tf.random.set_global_generator(tf.random.Generator.from_seed(3))
    layer = Restless()
    workload = make_workload(layer, optimizer)
    generator = tf.random.get_global_generator().state
    keras_state = seed_generator.global_seed_generator().state
    everything = [*known_variables(workload), layer.secret, generator, keras_state]
    before = [v.numpy().tobytes() for v in everything]
    baseline = workload.model.train_function
    with TrainingTrials(workload, baseline, clock=iter(range(10_000)).__next__) as bench:
        trial = bench.try_plan(Plan((Nothing(),)))
    assert trial.step_seconds is not None  # steps were run
    assert [v.numpy().tobytes() for v in everything] == before


class Nothing(tfaccel.Pass):
    name = "nothing_of_test_state"

    def unsupported(self, workload):
        return None

    def applied(self, context):
        return tf.name_scope("")


class Noisy(keras.layers.Layer):
    """A random layer of the user's own, which nothing can switch off."""

    def __init__(self):
        super().__init__()
        self.generator = keras.random.SeedGenerator(5)

    def call(self, inputs):
        return keras.random.dropout(inputs, 0.5, seed=self.generator)


def test_a_model_that_is_random_by_itself_is_not_refused_for_that():
    """XLA draws other numbers; the bound is then what another seed does."""
    workload = make_workload(Noisy())
    probe = StepRecorder(workload, Snapshot.of(workload))
    reference = probe.observe(Plan())
    again = tfaccel.measure.numerics.compare(reference, probe.observe(Plan(), reference))
    other = tfaccel.measure.numerics.compare(reference, probe.near())
    assert again.gradient == 0.0
    assert other.violation(tfaccel.measure.numerics.TOLERANCES["float32"])
    wide = tfaccel.measure.numerics.widened(tfaccel.measure.numerics.TOLERANCES["float32"], other)
    assert wide.gradient == pytest.approx(1.5 * other.gradient)


def test_dropout_is_off_while_steps_are_compared():
    workload = make_workload(layers.Dropout(0.5))
    probe = StepRecorder(workload, Snapshot.of(workload))
    reference = probe.observe(Plan())
    other = probe.near()
    assert tfaccel.measure.numerics.compare(reference, other).gradient < 1e-4
    assert workload.model.layers[1].rate == 0.5


@pytest.mark.parametrize(
    ("item", "optimizer"),
    [
        *((tfaccel.passes.FusedOptimizer(), name) for name in ("adam", "sgd")),
        pytest.param(tfaccel.passes.FusedOptimizer(), "rmsprop", marks=pytest.mark.slow),
        (tfaccel.passes.XLA(), "adam"),
        pytest.param(tfaccel.passes.XLA(), "sgd", marks=pytest.mark.slow),
        pytest.param(tfaccel.passes.XLA(), "rmsprop", marks=pytest.mark.slow),
    ],
)
def test_sparse_gradients_are_handed_on_as_they_are(optimizer, item):
    """Keras squares the slices of a repeated token before it adds them: the sum is not the same."""
    body = [layers.Embedding(6, 3), layers.Flatten(), layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,), dtype="int32"), *body])
    model.compile(optimizer, "mse")
    data = tf.data.Dataset.from_tensors(
        (tf.constant([[1, 1, 2, 1], [3, 1, 1, 0]]), tf.ones((2, 1)))
    )
    model.fit(data, verbose=0)
    workload = Workload(model, (next(iter(data)),), data.element_spec)
    probe = StepRecorder(workload, Snapshot.of(workload))
    reference = probe.observe(Plan())
    assert any(isinstance(g, tf.IndexedSlices) for g in reference.handed.values())
    drift = tfaccel.measure.numerics.compare(reference, probe.observe(Plan((item,)), reference))
    assert drift.violation(tfaccel.measure.numerics.TOLERANCES["float32"]) is None
    assert drift.gradient < 1e-6


def test_build_optimizer_makes_the_slots_of_the_first_step():
    def slots(train):
        keras.utils.clear_session(free_memory=False)
        model = keras.Sequential([keras.Input((3,), name="i"), layers.Dense(2, name="d")])
        model.compile("adam", "mse")
        if train:
            model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)
        else:
            build_optimizer(model)
        return [(v.path, v.shape) for v in model.optimizer.variables]

    assert slots(train=True) == slots(train=False)


class Calls(layers.Layer):
    """Counts how often it is called, which outside of a trace is never."""

    times = 0

    def call(self, x):
        Calls.times += 1
        return x


def _single():
    body = [layers.Dense(3), Calls(), layers.Dense(2)]
    model = keras.Sequential([keras.Input((3,)), *body])
    model.compile("adam", "mse", metrics=["mae"], weighted_metrics=["mse"])
    return model, np.ones((4, 2))


def _several():
    x = inputs = keras.Input((3,))
    x = Calls()(layers.Dense(3)(x))
    model = keras.Model(inputs, {n: layers.Dense(k, name=n)(x) for n, k in (("u", 1), ("v", 3))})
    model.compile("sgd", {"u": "mse", "v": "mae"}, metrics={"u": ["mae"], "v": ["accuracy"]})
    return model, {"u": np.ones((4, 1)), "v": np.ones((4, 3))}


def fitted(make, *callbacks):
    """How often a layer was called, and what came of the training."""
    keras.utils.set_random_seed(3)
    model, y = make()
    Calls.times = 0
    history = model.fit(np.ones((4, 3)), y, verbose=0, callbacks=[*callbacks]).history
    times = Calls.times
    return times, history, [v.numpy().tolist() for v in model.optimizer.variables]


stock_fitted = functools.cache(fitted)


# The traces are counted by Keras's own fit, too, so one model under that plan is enough.
@pytest.mark.parametrize(
    ("make", "plan", "traces"),
    [
        pytest.param(_single, "auto", 1, marks=pytest.mark.slow),
        (_several, "auto", 1),
        (_several, ["nothing_of_test_state"], 1),
        (_single, "baseline", 2),
    ],
)
def test_a_first_step_is_traced_once(make, plan, traces):
    """Keras by itself makes variables in its trace, and TensorFlow then traces once more."""
    accelerated = fitted(make, tfaccel.AccelCallback(plan, verbose=0))
    stock = stock_fitted(make)
    assert (accelerated[0], stock[0]) == (traces, 2)
    assert accelerated[1:] == stock[1:]


def test_a_target_that_does_not_fit_fails_in_keras_s_words():
    model, _ = _several()
    with pytest.raises(Exception) as stock:
        model.fit(np.ones((4, 3)), np.ones((4, 1)), verbose=0)
    model, _ = _several()
    with pytest.raises(type(stock.value)):
        model.fit(
            np.ones((4, 3)),
            np.ones((4, 1)),
            verbose=0,
            callbacks=[tfaccel.AccelCallback(verbose=0)],
        )


@pytest.mark.parametrize("kind", ["unbuilt", "own step"])
def test_what_only_a_step_shows_is_left_to_it(kind):
    class Own(keras.Model):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs)

    if kind == "unbuilt":
        model = keras.Sequential([layers.Dense(2)])
    else:
        inputs = keras.Input((3,))
        model = Own(inputs, layers.Dense(2)(inputs))
    model.compile("adam", "mse")
    build_all(model, (tf.TensorSpec((None, 3)), tf.TensorSpec((None, 2))))
    assert not model.optimizer.built
