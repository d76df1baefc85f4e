"""Batches of many sizes: what XLA would compile for each is compiled for none."""

import contextlib
import dataclasses
import functools
import warnings
from typing import ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tfaccel.compat.patching import instance_attribute
from tfaccel.core.compiled_sizes import MOST_SIZES, Sizes, collected, note
from tfaccel.core.plan import Plan
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload, sizes_vary
from tfaccel.passes import XLA, FusedNorm, FusedRNN
from tfaccel.steps.compiled_step import build_step
from tfaccel.training.guarded_step import GuardedStep, Trust
from tfaccel.training.validation import Turn, Validation

USUAL = [8, 8, 8, 5]
MANY = [8, 3, 7, 5, 9, 4]
LATE = [8, 8, 8, 3, 7, 5, 9, 4, 6, 8]
SPEC = (tf.TensorSpec((None, 4)), tf.TensorSpec((None, 1)))


@dataclasses.dataclass(frozen=True)
class Compiling(tfaccel.Pass):
    """Changes nothing, and says that it compiles; `seen` is what it was traced under."""

    name = "compiling"
    seen: ClassVar[list] = []
    fails: bool = False

    def unsupported(self, workload):
        return None

    def compiles_sizes(self, workload):
        return not workload.sizes_vary

    @contextlib.contextmanager
    def applied(self, context):
        if self.fails and self.seen:
            raise ArithmeticError("it can't be traced")
        self.seen.append(context.workload.sizes_vary)
        layer = context.workload.model.layers[-1]
        own = layer.call

        def call(inputs, **kwargs):
            if self.compiles_sizes(context.workload):
                note(inputs)
            return own(inputs, **kwargs)

        with instance_attribute(layer, "call", call):
            yield


@pytest.fixture(autouse=True)
def _nothing_seen():
    Compiling.seen.clear()


def batches(sizes):
    rng = np.random.default_rng(3)
    for size in sizes:
        x = rng.normal(size=(size, 4)).astype("float32")
        yield x, x.sum(1, keepdims=True)


def data(sizes):
    made = tf.data.Dataset.from_generator(lambda: batches(sizes), output_signature=SPEC)
    return made.apply(tf.data.experimental.assert_cardinality(len(sizes)))


@functools.cache
def stock(*sizes):
    """What `fit` gives without tfaccel."""
    return fit(sizes)


def fit(sizes, *callbacks, steps_per_execution=1):
    """The losses and weights of two epochs."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9), "mse", steps_per_execution=steps_per_execution
    )
    history = model.fit(data(sizes), epochs=2, verbose=0, callbacks=[*callbacks]).history
    return history["loss"], [weight.numpy() for weight in model.weights]


def assert_same(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    for a, b in zip(found[1], expected[1], strict=True):
        np.testing.assert_array_equal(a, b)


def given(*passes):
    return tfaccel.AccelCallback(plan=list(passes), cache_dir=False, verbose=0)


@pytest.mark.parametrize("steps_per_execution", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_given_plan_knows_of_many_sizes_before_it_is_traced(steps_per_execution):
    options = {"steps_per_execution": steps_per_execution}
    expected = stock(*MANY) if steps_per_execution == 1 else fit(MANY, **options)
    assert_same(fit(MANY, given(Compiling()), **options), expected)
    assert set(Compiling.seen) == {True}


def test_two_sizes_are_as_usual():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert_same(fit(USUAL, given(Compiling())), stock(*USUAL))
    assert set(Compiling.seen) == {False}


def test_many_sizes_that_come_late_are_seen_while_it_runs():
    with pytest.warns(UserWarning, match="sizes"):
        found = fit(LATE, given(Compiling()))
    assert_same(found, stock(*LATE))
    assert Compiling.seen[0] is False and Compiling.seen[-1] is True


def test_no_batch_is_lost_where_a_plan_fails_at_once():
    with pytest.warns(RuntimeWarning, match="can't be traced"):
        found = fit(MANY, given(Compiling(fails=True)))
    assert_same(found, stock(*MANY))


def test_trials_know_of_many_sizes():
    accel = tfaccel.AccelCallback(
        includes=["compiling"],
        tuning_share=None,
        max_tuning_seconds=1e6,
        cache_dir=False,
        verbose=0,
    )
    fit(MANY, accel)
    assert set(Compiling.seen) == {True}


def test_a_plan_that_won_on_one_size_is_left_when_many_come():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.make_train_function()
    left = []
    step = GuardedStep(
        Workload(model, element_spec=SPEC),
        Plan((Compiling(),)),
        None,
        model.train_function,
        lambda: 0.0,
        False,
        left.append,
    )
    iterator = iter(data(LATE))
    met = []
    while not left:
        met.append(LATE[len(met)])
        step(iterator)
    assert f"more than {MOST_SIZES} sizes" in left[0] and step.trust is Trust.LEFT
    assert len(set(met)) == MOST_SIZES + 1


def test_validation_by_a_plan_ends_when_many_sizes_come():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    workload, plan = Workload(model, element_spec=SPEC), Plan((Compiling(),))
    validation = Validation(workload, plan, 2.0, None, lambda: 0.0)
    validation.install()
    fast = build_step(workload, plan, kind="test")
    validation.accelerate(fast)
    iterator = iter(data(LATE))
    for size in LATE:
        assert (validation.turn is Turn.ORIGINAL) == fast.sizes.too_many(), size
        model.test_function(iterator)
    assert validation.turn is Turn.ORIGINAL
    validation.remove()


def test_sizes_are_counted_once_each():
    sizes = Sizes()

    @tf.function(input_signature=[tf.TensorSpec((None, 2))], autograph=False)
    def step(x):
        with collected() as compiled:
            note(x), note(tf.boolean_mask(x, x[:, 0] > 0))
        sizes.note(compiled.shapes)

    def count(*signs):
        step(tf.reshape(tf.constant(signs, tf.float32), (-1, 1)) * tf.ones((1, 2)))
        return int(sizes.count.numpy())

    # The rows that are kept differ in number though batches do not.
    assert [count(1, 1), count(1, 1), count(1, -1), count(-1, 1), count(-1, -1)] == [1, 1, 2, 2, 3]
    assert [count(1), count(), count(1), count(1, 1, 1)] == [4, 5, 5, 5]
    assert sizes.too_many()


def test_what_is_compiled_in_a_graph_inside_is_seen():
    @tf.function(autograph=False)
    def step(x):
        with collected() as compiled:
            tf.while_loop(lambda i: i < 2, lambda i: note(x[:i]) or [i + 1], [0])
        assert compiled.inside and not compiled.shapes

    step.get_concrete_function(tf.TensorSpec((None, 2)))


def test_sizes_that_nothing_is_compiled_for_do_not_count():
    """Sequences of many lengths: the loops of normalizations leave them alone."""
    model = keras.Sequential([keras.Input((None, 2)), keras.layers.BatchNormalization()])
    model.add(keras.layers.GlobalAveragePooling1D())
    model.compile("sgd", "mse")
    spec = (tf.TensorSpec((None, None, 2)), tf.TensorSpec((None, 2)))
    step = build_step(Workload(model, element_spec=spec), Plan((FusedNorm(),)))
    rng = np.random.default_rng(0)
    made = [(rng.normal(size=(4, n, 2)), rng.normal(size=(4, 2))) for n in range(2, 9)]
    iterator = iter(tf.data.Dataset.from_generator(lambda: iter(made), output_signature=spec))
    for _ in made:
        step(iterator)
    assert int(step.sizes.count.numpy()) == 0


def test_what_varies():
    assert not sizes_vary([]) and not sizes_vary([(8,), (8,), (5,)])
    assert sizes_vary([(8,), (7,), (5,)])


@pytest.mark.parametrize("item", [XLA(), FusedRNN()])
def test_what_can_only_be_compiled_is_refused(item):
    model = keras.Sequential([keras.Input((3, 2)), keras.layers.LSTM(2)])
    model.compile("sgd", "mse")
    workload = Workload(model, element_spec=tf.TensorSpec((None, 3, 2)))
    assert item.unsupported(workload) is None
    unsupported = item.unsupported(dataclasses.replace(workload, sizes_vary=True))
    assert unsupported.kind is Refusal.SIZES and unsupported.remedy
