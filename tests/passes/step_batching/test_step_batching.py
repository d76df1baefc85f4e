"""Several steps in one call: everything that Keras and its callbacks see is as before."""

import contextlib
import dataclasses
import functools
import itertools

import catalogue
import keras
import numpy as np
import pytest
import tensorflow as tf
from batched_fits import Watching, accelerated, make_data, make_model, state_after, stock_after
from early import built_early

import tfaccel
from tfaccel.compat.patching import instance_attribute
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.passes import StepBatching, step_batching

layers = keras.layers
callbacks = keras.callbacks


# Other models, fed as the rest are, or fed as one of `CASES` below is.
SLOW_FITS = (
    "dense_from_numpy",
    "several_steps_an_execution",
    "unknown_length",
    "infinite",
    "images_from_tf_data",
    "masked_text",
    "several_inputs_and_outputs",
    "frozen_and_regularised",
)
FITS = pytest.mark.parametrize(
    "fit",
    [
        pytest.param(fit, marks=pytest.mark.slow if fit.name in SLOW_FITS else ())
        for fit in catalogue.FITS
    ],
    ids=lambda fit: fit.name,
)


class Logs(callbacks.Callback):
    """Notes what it is handed at every batch and epoch, types included."""

    def __init__(self):
        super().__init__()
        self.handed = []

    def on_train_batch_end(self, batch, logs=None):
        self.handed.append((batch, {k: (type(v), v) for k, v in logs.items()}))

    def on_epoch_end(self, epoch, logs=None):
        self.handed.append((epoch, dict(logs)))


def seen_by_all(making=(), steps=None, others=(), **fitting):
    """Each step's logs, History, the weights and the optimizer's variables after a fit."""
    model, logs = make_model(**dict(making)), Logs()
    if steps is None:
        built_early(model)
    accel = [] if steps is None else [accelerated(steps, allow_batch_hooks=True)]
    given = {"x": make_data(), "batch_size": 8, "epochs": 3, "verbose": 0, **fitting}
    if isinstance(given["x"], tuple):
        given["x"], given["y"] = given["x"]
    history = model.fit(**given, callbacks=[*others, logs, *accel])
    assert not accel or accel[0].plan.names == ("step_batching",)
    values = [v.numpy().tolist() for v in [*model.variables, *model.optimizer.variables]]
    return logs.handed, history.history, values


def unknown_length(batches=9):
    data = tf.data.Dataset.from_tensor_slices(make_data(8 * batches - 3)).batch(8)
    return data.filter(lambda x, y: True)


def growing():
    """Longer in each epoch, and nobody says so."""
    epochs = itertools.count(5)

    def batches():
        for index in range(next(epochs)):
            yield np.full((2, 4), index, "float32"), np.ones((2, 1), "float32")

    spec = (tf.TensorSpec((None, 4)), tf.TensorSpec((None, 1)))
    return tf.data.Dataset.from_generator(batches, output_signature=spec)


def endless():
    return tf.data.Dataset.from_tensor_slices(make_data(24)).batch(5).repeat()


CASES = {
    "a partial last batch": dict,
    "initial_epoch": lambda: {"initial_epoch": 1},
    "one epoch": lambda: {"epochs": 1},
    "validation": lambda: {"validation_split": 0.3},
    "a batch an epoch": lambda: {"batch_size": 200},
    # Without dropout: whether Keras's own step draws random numbers before it finds the
    # data's end is a race.
    "unknown length": lambda: {
        "x": unknown_length(),
        "validation_data": unknown_length(),
        "making": {"dropout": 0},
    },
    "a growing length": lambda: {"x": growing(), "making": {"dropout": 0}},
    "an iterator that goes on": lambda: {"x": endless(), "steps_per_epoch": 7},
    "data that end within an epoch": lambda: {"x": make_data(), "steps_per_epoch": 7},
    "fewer batches than steps": lambda: {
        "x": unknown_length(4),
        "steps_per_epoch": 6,
        "making": {"dropout": 0},
    },
    "steps_per_execution": lambda: {"making": {"steps_per_execution": 3}},
    "steps_per_execution, unknown length": lambda: {
        "x": unknown_length(),
        "making": {"steps_per_execution": 2},
    },
    "XLA": lambda: {"making": {"jit_compile": True}},
    "a metric of several numbers": lambda: {
        "making": {"metrics": [keras.metrics.R2Score(class_aggregation=None)]}
    },
}


# What differs from the others by the step, more than by how it is fed; a last batch that is
# not full comes in most, and others end within an epoch.
SLOW_CASES = (
    "a partial last batch",
    "data that end within an epoch",
    "XLA",
    "a metric of several numbers",
    "steps_per_execution, unknown length",
    "one epoch",
    "initial_epoch",
    "a batch an epoch",
    "a growing length",
)


@functools.cache
def stock_of(case):
    return seen_by_all(**CASES[case]())


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    ("case", "steps"),
    [
        *((case, 4) for case in CASES if case not in SLOW_CASES),
        *(pytest.param(case, 4, marks=pytest.mark.slow) for case in SLOW_CASES),
        pytest.param("unknown length", 2, marks=pytest.mark.slow),
        pytest.param("validation", 100, marks=pytest.mark.slow),
    ],
)
def test_every_log_and_every_weight_is_stock(case, steps):
    assert seen_by_all(**CASES[case](), steps=steps) == stock_of(case)


@FITS
def test_every_kind_of_fit_is_the_same_to_the_last_bit(fit):
    accel = accelerated()
    variables, history = catalogue.results(fit, accel)
    stock_variables, stock_history = catalogue.stock_results(fit)
    for value, stock in zip(variables, stock_variables, strict=True):
        np.testing.assert_array_equal(value, stock)
    assert history == stock_history
    assert accel.plan.names == ("step_batching",)


def test_steps_do_run_together():
    """Else all of the above would hold for nothing."""
    model, calls = make_model(), []

    class Counts(callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            calls.append(int(model.optimizer.iterations.numpy()))

    given = dict(zip("xy", make_data(80), strict=True))
    accel = accelerated(4, allow_batch_hooks=True)
    model.fit(**given, batch_size=8, verbose=0, callbacks=[accel, Counts()])
    assert calls == [1, 5, 5, 5, 5, 9, 9, 9, 9, 10]
    assert accel.session.built.function.experimental_get_tracing_count() == 1


class StopsAfter(callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.model.stop_training = epoch == self.epoch


def test_a_training_that_stops_within_its_epoch():
    """`stop_training` set as an epoch begins: Keras runs one more batch."""
    assert seen_by_all(steps=4, others=[StopsAfter(1)]) == seen_by_all(others=[StopsAfter(1)])


def stopped(row, *added):
    model = make_model() if added else built_early(make_model())
    x, y = make_data()
    y[row] = np.nan
    history = model.fit(
        x, y, batch_size=8, epochs=3, shuffle=False, verbose=0,
        callbacks=[*added, callbacks.TerminateOnNaN()],
    )  # fmt: skip
    return int(model.optimizer.iterations), len(history.epoch)


@functools.cache
def stock_stopped(row):
    return stopped(row)


@pytest.mark.parametrize(
    ("row", "guard"),
    [
        (33, False),
        (74, True),
        *(pytest.param(row, True, marks=pytest.mark.slow) for row in (0, 33)),
    ],
)
def test_terminate_on_nan_comes_in_time(row, guard):
    assert stopped(row, accelerated(guard=guard)) == stock_stopped(row)


def test_a_failing_pipeline_fails_with_the_same_state():
    def failed(*added):
        model = make_model() if added else built_early(make_model())
        data = tf.data.Dataset.range(20).map(
            lambda i: (tf.ones((2, 4)), tf.debugging.check_numerics(1 / (14 - i), "bad data"))
        )
        with pytest.raises(tf.errors.InvalidArgumentError, match="bad data"):
            model.fit(data.map(lambda x, y: (x, tf.fill((2, 1), y))), verbose=0, callbacks=added)
        return [w.tolist() for w in model.get_weights()]

    assert failed(accelerated()) == failed()


@pytest.mark.parametrize("steps", [1, 0, -3, 2.5, True, "4"])
def test_a_wrong_number_of_steps_is_told_so(steps):
    with pytest.raises(ValueError, match=r"`steps` must be an integer of at least 2. Received"):
        StepBatching(steps)


class OwnFunction(keras.Sequential):
    def make_train_function(self, force=False):
        return super().make_train_function(force)


def test_what_else_is_refused():
    item, model = StepBatching(), make_model()
    assert item.unsupported(Workload(model)) is None
    assert item.unsupported(Workload(model, step_seconds=0.001)) is None
    assert item.unsupported(Workload(model, step_seconds=0.04)).kind is Refusal.NO_USE
    assert item.unsupported(Workload(model, callbacks=None)).kind is Refusal.OWN_CODE
    allowed = StepBatching(allow_batch_hooks=True)
    assert allowed.unsupported(Workload(model, callbacks=(Watching(),))) is None
    own = OwnFunction([keras.Input((4,)), layers.Dense(1)])
    own.compile("sgd", "mse")
    unsupported = item.unsupported(Workload(own))
    assert unsupported.kind is Refusal.OWN_CODE and "make_train_function" in unsupported.cause


@pytest.mark.parametrize(
    ("seconds", "steps"), [(0.0, 32), (0.003, 32), (0.006, 16), (0.02, 4), (0.5, 4)]
)
def test_as_many_steps_as_nobody_sees(seconds, steps):
    assert StepBatching.suited(Workload(make_model(), step_seconds=seconds)).steps == steps
    assert steps in step_batching.CHOICES


def test_a_second_fit_with_another_callback_refuses():
    x, y = make_data()
    model, accel = make_model(), accelerated()
    model.fit(x, y, verbose=0, callbacks=[accel])
    with pytest.warns(UserWarning, match="leaves out step_batching"):
        model.fit(x, y, verbose=0, callbacks=[accel, Watching()])
    assert accel.plan.is_baseline


@pytest.mark.parametrize("compare_every", [2, pytest.param(None, marks=pytest.mark.slow)])
def test_the_profiler_watches_without_a_change(compare_every):
    profiler = tfaccel.ProfilerCallback(compare_every=compare_every, verbose=0)
    accel = accelerated()
    assert state_after(accel, profiler, epochs=4) == stock_after(epochs=4)
    summary = profiler.summary()
    assert accel.plan.names == ("step_batching",)
    assert summary["steps"] == 4 * 10
    assert bool(summary["comparisons"]) == bool(compare_every)


@dataclasses.dataclass(frozen=True)
class Spoiling(tfaccel.Pass):
    """The loss is NaN from the tenth step of the second epoch on."""

    name = "spoiling"

    def unsupported(self, workload):
        return None

    @contextlib.contextmanager
    def applied(self, context):
        model = context.workload.model
        original = model.compute_loss

        def compute_loss(*args, **kwargs):
            late = model.optimizer.iterations.value >= 16
            return original(*args, **kwargs) * tf.where(late, np.float32(np.nan), 1.0)

        with instance_attribute(model, "compute_loss", compute_loss):
            yield


def test_the_guard_finds_the_bad_step_in_a_group():
    logs = Logs()
    accel = tfaccel.AccelCallback([Spoiling(), StepBatching(8, True)], verbose=0)
    with pytest.warns(RuntimeWarning, match="the loss turned non-finite"):
        _, history = state_after(accel, logs, epochs=3)
    assert np.all(np.isfinite(history["loss"]))
    assert len(logs.handed) == 3 * 11
    assert accel.plan.is_baseline
