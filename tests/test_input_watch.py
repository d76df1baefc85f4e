"""AccelCallback says when the input is the bottleneck, and what to change."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock
from crossed import with_slow

import tfaccel
from tfaccel.compat.tf_data import dataset_of, lasting_effect, stages
from tfaccel.profiling.input_watch import InputWatch, bottleneck
from tfaccel.training.step_dispatcher import StepDispatcher

layers = keras.layers


def in_one_thread(dataset):
    """tf.data adds a prefetch by itself, whose thread would move the clock at any moment."""
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False
    return dataset.with_options(options)


class Stub:
    """A model as far as TrainFunction looks at it."""

    history = distribute_strategy = None
    steps_per_execution = 1

    def __init__(self, clock, step_seconds):
        def step(iterator):
            next(iterator)
            clock.advance(step_seconds)
            return {"loss": tf.constant(1.0)}

        self.train_function = step


def told(wait_seconds, step_seconds, calls=40, epochs=1):
    """What the watch says of a pipeline that takes `wait_seconds` a batch."""
    clock, said = FakeClock(), []
    model = Stub(clock, step_seconds)
    own, function = model.train_function, StepDispatcher.of(model)
    watch = InputWatch(function, clock, said.append)

    def wait(i):
        clock.advance(wait_seconds)
        return i

    made = tf.data.Dataset.range(10_000).map(lambda i: tf.numpy_function(wait, [i], tf.int64))
    iterator = iter(in_one_thread(made))
    for _ in range(epochs):
        watch.begin_epoch()
        for _ in range(calls):
            model.train_function(iterator)
    return said, model.train_function is own


@pytest.mark.parametrize(
    ("waited", "stepped", "bound"), [(1.0, 1.0, True), (1.0, 3.9, True), (1.0, 4.1, False)]
)
def test_it_tells_once_and_ends(waited, stepped, bound):
    said, ended = told(waited, stepped)
    assert len(said) == bound
    assert ended == bound
    if bound:
        share = waited / (waited + stepped)
        assert f"{share:.0%} of a step is waiting" in said[0]


def test_a_fit_that_is_too_short_says_nothing():
    assert told(1.0, 1.0, calls=11) == ([], False)
    assert len(told(1.0, 1.0, calls=12)[0]) == 1


def test_after_two_epochs_it_ends():
    assert told(0.0, 1.0, calls=5, epochs=2) == ([], False)
    assert told(0.0, 1.0, calls=5, epochs=3) == ([], True)


@pytest.mark.parametrize(
    ("make", "remedies"),
    [
        (lambda ds: ds.batch(2), ["cache", "prefetch"]),
        (lambda ds: ds.map(lambda i: i + 1).batch(2), ["num_parallel_calls", "cache", "prefetch"]),
        (
            lambda ds: ds.map(lambda i: i + 1, num_parallel_calls=2).cache().prefetch(1),
            [],
        ),
        (
            lambda ds: ds.map(lambda i: tf.numpy_function(abs, [i], tf.int64)).prefetch(1),
            ["Python code", "num_parallel_calls", "cache"],
        ),
    ],
)
def test_it_says_what_to_change(make, remedies):
    said = bottleneck(0.3, 0.1, make(tf.data.Dataset.range(9)))
    assert "75% of a step is waiting for it (300 ms, and 100 ms of training)" in said
    named = ("Python code", "num_parallel_calls", ".cache()", ".prefetch(")
    assert [word for word in named if word in said] == [
        word for word in named if any(remedy in word for remedy in remedies)
    ]
    assert "tfaccel.data.prepare" in said


def test_an_unknown_pipeline_still_has_a_remedy():
    assert "tfaccel.data.prepare" in bottleneck(1.0, 1.0, None)


def fit(dataset, *callbacks, **options):
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dropout(0.3)])
    model.compile("adam", "mse")
    own = None
    history = model.fit(dataset, verbose=0, callbacks=list(callbacks), **options)
    return [v.numpy() for v in model.variables], list(history.history.values()), own


def slow_dataset(clock, seconds):
    def wait(x):
        clock.advance(seconds)
        return x

    def mapped(x):
        made = tf.numpy_function(wait, [x], tf.float32)
        made.set_shape(x.shape)
        return made, x[:, :3]

    x = np.random.default_rng(0).normal(size=(240, 4)).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices(x).batch(8, drop_remainder=True)
    return in_one_thread(batches.map(mapped))


def test_in_fit_the_report_says_so(capsys):
    clock = FakeClock(step=1e-3)
    accel = tfaccel.AccelCallback(clock=clock, tuning_share=1e-6)
    slow = fit(slow_dataset(clock, 1.0), accel, epochs=2)
    assert "The input is the bottleneck" in accel.report.note
    assert "num_parallel_calls" in accel.report.note
    assert capsys.readouterr().out.count("The input is the bottleneck") == 1
    stock = fit(slow_dataset(FakeClock(), 1.0), epochs=2)
    for left, right in zip(slow[0], stock[0], strict=True):
        np.testing.assert_array_equal(left, right)
    assert slow[1] == stock[1]


def test_of_arrays_it_says_nothing_of_keras_own_pipeline():
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            own = self.model.train_function
            self.model.train_function = lambda it: seen.append(dataset_of(it)) or own(it)

    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model.compile("sgd", "mse")
    model.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0, callbacks=[Look()])
    said = bottleneck(0.3, 0.1, seen[0])
    assert "Keras picks each batch out of your arrays" in said
    assert "num_parallel_calls" not in said and ".cache()" not in said


def test_with_a_plan_it_is_printed_alone(capsys):
    clock = FakeClock(step=1e-3)
    accel = tfaccel.AccelCallback(["fused_optimizer"], clock=clock)
    fit(slow_dataset(clock, 1.0), accel)
    assert not accel.plan.is_baseline
    assert "The input is the bottleneck" in capsys.readouterr().out


@pytest.mark.parametrize("first", with_slow([True, False], [False]))
def test_beside_the_profiler_it_keeps_silent(first, capsys):
    clock = FakeClock(step=1e-3)
    accel = tfaccel.AccelCallback(clock=clock)
    profiler = tfaccel.ProfilerCallback(clock=clock, verbose=0)
    fit(slow_dataset(clock, 1.0), *((accel, profiler) if first else (profiler, accel)))
    assert "bottleneck" not in capsys.readouterr().out
    assert profiler.summary()["input_bound"]


def test_what_a_pipeline_is_made_of():
    dataset = tf.data.Dataset.range(9).shuffle(9, reshuffle_each_iteration=False).batch(2).cache()
    assert [stage.name for stage in stages(dataset)] == ["Range", "Shuffle", "Batch", "Cache"]
    assert lasting_effect(dataset) == ""
    assert dataset_of(iter(dataset)) is not None
    assert dataset_of(iter([])) is None
    assert stages(object()) is None
    variable = tf.Variable(0, dtype=tf.int64)
    counts = tf.data.Dataset.range(3).map(lambda i: variable.assign_add(i))
    assert "AssignAddVariableOp" in lasting_effect(counts)
    reads = tf.data.Dataset.range(3).map(lambda i: variable + i)
    assert lasting_effect(reads) == ""
