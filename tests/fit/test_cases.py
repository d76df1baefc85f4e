"""Trainings unlike most: whatever they do, they train as without tfaccel, or faster."""

import contextlib
import copy
import dataclasses
import io
import pickle
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from nets import make_data, make_net

import tfaccel
from tfaccel.compat.patching import instance_attribute
from tfaccel.steps.held_batches import HeldBatches

layers = keras.layers


def own_function(*names):
    """A model class that makes functions of its own, without `force`, and keeps them."""

    def make(self, name):
        if getattr(self, f"{name}_function") is None:
            step = tf.function(getattr(self, f"{name}_step"))
            data = (lambda it: next(it)) if name != "predict" else (lambda it: it[0])
            setattr(self, f"{name}_function", lambda it: step(data(it)))
        return getattr(self, f"{name}_function")

    methods = {f"make_{name}_function": lambda self, n=name: make(self, n) for name in names}
    return type("Own", (keras.Sequential,), methods)


@pytest.mark.parametrize("plan", ["auto", ["fused_optimizer"]])
def test_a_model_with_a_train_function_of_its_own_is_left_alone(plan):
    model = own_function("train")(make_net().layers)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    accel = tfaccel.AccelCallback(plan, tuning_share=None, cache_dir=False, verbose=0)
    before = set(vars(model))
    model.fit(**make_data(), verbose=0, callbacks=[accel])
    assert accel.plan.is_baseline
    assert "make_train_function of its own" in accel.report.note
    assert model.test_function is None
    assert set(vars(model)) - before <= {"history", "_eval_epoch_iterator"}


@pytest.mark.slow
def test_a_model_with_other_functions_of_its_own():
    """Trained under the plan, validated and asked for predictions as it is."""
    model = own_function("test", "predict")(make_net().layers)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    data = make_data()
    accel = tfaccel.AccelCallback(["fused_activation", "fused_optimizer"], verbose=0)
    again = (data["x"], data["y"])
    model.fit(**data, epochs=3, verbose=0, callbacks=[accel], validation_data=again)
    assert "fused_optimizer" in accel.plan.names
    fast = tfaccel.accelerate(model, data["x"], max_tuning_seconds=5, cache_dir=False, verbose=0)
    assert "make_predict_function of its own" in fast.report.note
    predicted = fast.predict(data["x"], verbose=0)
    np.testing.assert_allclose(predicted, model(data["x"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("after_a_fit", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_in_a_loop_of_ones_own_callbacks_say_so_and_do_nothing(after_a_fit, capsys):
    model, data = make_net(), make_data()
    model.compile("sgd", "mse")
    if after_a_fit:
        model.fit(**data, verbose=0)
    accel, profiler = tfaccel.AccelCallback(), tfaccel.ProfilerCallback()
    own = model.train_function
    for _ in range(2):
        running = keras.callbacks.CallbackList([accel, profiler], model=model, epochs=1, steps=4)
        running.on_train_begin()
        running.on_epoch_begin(0)
        assert model.train_function is own
        for batch in range(4):
            running.on_train_batch_begin(batch)
            logs = model.train_on_batch(data["x"], data["y"], return_dict=True)
            running.on_train_batch_end(batch, logs)
        running.on_epoch_end(0, logs)
        running.on_train_end(logs)
        own = model.train_function
    assert accel.plan.is_baseline
    assert "not `model.fit`'s" in accel.report.note
    assert capsys.readouterr().out.lower().count("this loop is not") == 2
    model.fit(**data, verbose=0, callbacks=[accel, profiler])
    assert profiler.summary()["steps"] == 6


@pytest.mark.parametrize("stdout", ["none", pytest.param("closed", marks=pytest.mark.slow)])
def test_without_a_standard_output_it_trains_in_silence(stdout, monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed if stdout == "closed" else None)
    model = make_net()
    model.compile("sgd", "mse")
    accel, profiler = tfaccel.AccelCallback(), tfaccel.ProfilerCallback()
    history = model.fit(**make_data(), verbose=0, callbacks=[accel, profiler])
    assert np.isfinite(history.history["loss"]).all()
    assert accel.report is not None and profiler.summary()["steps"] > 0


@pytest.mark.filterwarnings("error")
def test_where_warnings_are_errors_they_go_to_the_log(caplog):
    model = make_net()
    model.compile("sgd", "mse")
    accel = tfaccel.AccelCallback(["recompute", "xla", "fused_attention"], verbose=0)
    model.fit(**make_data(), verbose=0, callbacks=[accel])
    assert "tfaccel leaves out fused_attention" in caplog.text


class Peculiar(keras.Model):
    """A step with state of every kind, and a log that is NaN until an epoch ends."""

    def __init__(self):
        super().__init__()
        self.net = make_net()
        self.steps = tf.Variable(0, trainable=False)
        self.table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)
        self.generator = tf.random.Generator.from_seed(7)
        self.mean = keras.metrics.Mean(name="squares")
        self.late = keras.metrics.Mean(name="late")

    @property
    def metrics(self):
        return [self.mean, self.late]

    def call(self, x):
        return self.net(x)

    def train_step(self, data):
        x, y = data
        x = x + 0.01 * self.generator.normal(tf.shape(x))
        with tf.GradientTape() as tape:
            squares = self.compute_loss(x, y, self.net(x))
        weights = self.net.trainable_weights
        self.optimizer.apply(tape.gradient(squares, weights), weights)
        count = tf.cast(self.steps, tf.int64) % 2

        def odd():
            self.table.insert([count], self.table.lookup([count]) + 1.0)
            return tf.constant(0)

        tf.cond(count > 0, odd, lambda: tf.constant(0))
        self.steps.assign_add(1)
        self.mean.update_state(squares)
        return {"squares": self.mean.result(), "late": self.late.total / self.late.count}


@dataclasses.dataclass(frozen=True)
class Poison(tfaccel.Pass):
    """Weights turn NaN, or the step fails, from an iteration of the optimizer on."""

    name = "cases_poison"
    iteration: int = 0
    fails: bool = False

    def unsupported(self, workload):
        return None

    @contextlib.contextmanager
    def applied(self, context):
        optimizer = context.workload.model.optimizer
        apply = optimizer.apply

        def poisoned(grads, variables=None):
            good = optimizer.iterations.value < self.iteration
            if self.fails:
                tf.debugging.Assert(good, ["this step fails"])
            return apply([g * tf.where(good, 1.0, np.float32(np.nan)) for g in grads], variables)

        with instance_attribute(optimizer, "apply", poisoned):
            yield


def peculiar(callbacks=(), epochs=2):
    keras.utils.set_random_seed(5)
    model = Peculiar()
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    model.optimizer.build(model.net.trainable_weights)
    model.build((None, 4))
    history = model.fit(**make_data(), epochs=epochs, verbose=0, callbacks=list(callbacks)).history
    state = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    table = sorted(zip(*(part.numpy().tolist() for part in model.table.export()), strict=True))
    extra = [model.steps.numpy(), model.generator.state.numpy(), np.array(table)]
    return [*state, *extra], history["squares"]


@pytest.mark.parametrize(
    "plan", [pytest.param(["fused_optimizer"], marks=pytest.mark.slow), ["step_batching"]]
)
def test_a_log_that_is_nan_by_design_is_no_fault_of_the_plan(plan):
    accel = tfaccel.AccelCallback(plan, verbose=0)
    found, squares = peculiar([accel])
    assert list(accel.plan.names) == plan
    expected, own_squares = peculiar()
    np.testing.assert_allclose(squares, own_squares, rtol=1e-5)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fails", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:tfaccel")
def test_a_plan_that_is_left_at_once_leaves_no_trace(fails):
    accel = tfaccel.AccelCallback([Poison(fails=fails)], verbose=0)
    found, squares = peculiar([accel])
    assert accel.plan.is_baseline
    expected, own_squares = peculiar()
    assert squares == own_squares
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda callback: pickle.loads(pickle.dumps(callback)),
}


@pytest.mark.parametrize(
    "kind", ["deepcopy", *(pytest.param(k, marks=pytest.mark.slow) for k in ("copy", "pickle"))]
)
def test_callbacks_are_copied_after_a_fit_as_before_it(kind):
    """Tuners of hyperparameters copy them for each trial."""
    data = make_data()
    callbacks = [tfaccel.AccelCallback(["step_batching"], verbose=0)]
    callbacks.append(tfaccel.ProfilerCallback(verbose=0))
    for _ in range(2):
        model = make_net()
        model.compile("sgd", "mse")
        model.fit(**data, verbose=0, callbacks=callbacks)
        callbacks = [COPIES[kind](callback) for callback in callbacks]
    assert callbacks[0].plan.is_baseline  # until its fit begins
    assert callbacks[0].report is None


@pytest.mark.parametrize(
    ("passes", "iteration"),
    [
        pytest.param([], 3, marks=pytest.mark.slow),
        ([tfaccel.passes.StepBatching(4)], 8),
        pytest.param([], 8, marks=pytest.mark.slow),
        pytest.param([tfaccel.passes.StepBatching(4)], 3, marks=pytest.mark.slow),
    ],
)
def test_steps_that_are_rolled_back_are_trained_again(passes, iteration):
    """In the first epoch and in the second: as without the plan."""
    accel = tfaccel.AccelCallback([*passes, Poison(iteration)], verbose=0)
    with pytest.warns(RuntimeWarning, match="batches are trained again"):
        found, squares = peculiar([accel])
    assert accel.plan.is_baseline
    expected, own_squares = peculiar()
    np.testing.assert_allclose(squares, own_squares, rtol=1e-6)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_step_that_fails_costs_its_own_batch_at_most():
    accel = tfaccel.AccelCallback([Poison(8, fails=True)], verbose=0)
    with pytest.warns(RuntimeWarning, match="this step fails.* is put back"):
        (*_, steps, _, _), _ = peculiar([accel])
    assert accel.plan.is_baseline
    assert steps in (11, 12)


def test_batches_of_any_structure_are_held():
    held, seen = HeldBatches(), []

    @tf.function
    def step(batch):
        batch = held.hold(batch)
        seen.append(batch)
        return tf.reduce_sum(batch["x"][0])

    def batch(number):
        ragged = tf.ragged.constant([[float(number)], [1.0, 2.0]])
        return {"x": (tf.fill([2, number], 1.0), tf.constant(["a"])), "y": ragged}

    for number in range(1, 9):
        step(batch(number))
        if number == 2:
            held.widen(batch(2))
        if number == 4:
            held.mark_good()
        if number == 6:
            held.mark_epoch()
    (first, second) = held.since_good()
    assert [len(first), len(second)] == [2, 2]
    assert [int(item["x"][0].shape[1]) for item in (*first, *second)] == [5, 6, 7, 8]
    assert second[1]["y"].to_list() == [[8.0], [1.0, 2.0]]
